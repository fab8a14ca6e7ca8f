"""What lives as long as the tracker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Self

from services.tracker.alerts.announcer import Alerts
from services.tracker.backlog import oldest_waiting
from services.tracker.config import TrackerSettings
from services.tracker.dispatcher import Dispatcher
from services.tracker.store import TaskStore
from services.tracker.sweep import discard_again, sweep
from services.tracker.watchdog import Watchdog
from shared.blobs import BlobStore
from shared.cleanup import clean_up
from shared.database.pool import open_pool
from shared.periodic import periodically
from shared.stage import Runtime

DISPATCH_INTERVAL = timedelta(seconds=1)
"""How often the outbox is looked at; an index keeps a look at an empty one cheap."""

LOOKS_PER_TIMEOUT = 10
"""How often the watchdog looks within a task's timeout, which so lasts a tenth longer at most."""

CLEANUP_INTERVAL = timedelta(hours=1)
"""Old tasks and what crashes left behind may wait an hour more; each look is a few indexed queries, or one listing of
the blob store."""


@dataclass(frozen=True)
class Context:
    """The tracker's connections and what works on them."""

    runtime: Runtime
    store: TaskStore

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: TrackerSettings, runtime: Runtime) -> AsyncIterator[Self]:
        """Open everything and start the background work; end both at the end."""
        pool, blobs, publisher = await open_pool(settings), BlobStore(settings), runtime.publisher
        dispatcher = Dispatcher(pool, publisher, settings)
        watchdog = Watchdog(pool, publisher, partial(oldest_waiting, settings), settings.task_timeout)
        clean = partial(clean_up, pool, blobs, timedelta(days=settings.cleanup_days))
        try:
            async with (
                periodically(DISPATCH_INTERVAL, dispatcher.dispatch),
                periodically(settings.task_timeout / LOOKS_PER_TIMEOUT, watchdog.look),
                periodically(CLEANUP_INTERVAL, clean),
                periodically(CLEANUP_INTERVAL, partial(sweep, pool, blobs)),
                periodically(CLEANUP_INTERVAL, partial(discard_again, pool, publisher)),
                Alerts(settings).running(),
            ):
                yield cls(runtime, TaskStore(pool))
        finally:
            await pool.close()
