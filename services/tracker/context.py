"""What lives as long as the tracker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Self

from services.tracker.config import TrackerSettings
from services.tracker.dispatcher import Dispatcher
from services.tracker.store import TaskStore
from shared.blobs import BlobStore
from shared.cleanup import clean_up
from shared.database.pool import open_pool
from shared.kafka import Publisher
from shared.periodic import periodically

DISPATCH_INTERVAL = timedelta(seconds=1)
"""How often the outbox is looked at; an index keeps a look at an empty one cheap."""

CLEANUP_INTERVAL = timedelta(hours=1)
"""Old tasks may wait an hour more; each look is one indexed query."""


@dataclass(frozen=True)
class Context:
    """The tracker's connections and what works on them."""

    publisher: Publisher
    store: TaskStore

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: TrackerSettings, publisher: Publisher) -> AsyncIterator[Self]:
        """Open everything and start the background work; end both at the end."""
        pool, blobs = await open_pool(settings), BlobStore(settings)
        dispatcher = Dispatcher(pool, publisher)
        clean = partial(clean_up, pool, blobs, timedelta(days=settings.cleanup_days))
        try:
            async with (
                periodically(DISPATCH_INTERVAL, dispatcher.dispatch),
                periodically(CLEANUP_INTERVAL, clean),
            ):
                yield cls(publisher, TaskStore(pool))
        finally:
            await pool.close()
