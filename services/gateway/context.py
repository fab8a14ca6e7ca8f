"""What lives as long as the gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import structlog

from services.gateway.config import GatewaySettings
from services.gateway.control import Control
from services.gateway.hub import RESYNC_INTERVAL, Hub
from services.gateway.outbox import Outbox
from services.gateway.tasks import Tasks
from services.gateway.uploads import Uploads
from shared.blobs import BlobStore
from shared.broker import Broker, subscribe
from shared.database.pool import Pool, open_pool
from shared.embedding import Embedder, create_embedder, embedding_dimension, model_name
from shared.kafka import Publisher
from shared.periodic import periodically
from shared.stages import LOOK_INTERVAL, StageWatch
from shared.topics import TASK_UPDATES
from shared.vectors import VectorStore, create_vector_store

RECONNECT_PAUSE = timedelta(seconds=1)
"""Between two attempts to reach a broker that is away; uploads are accepted meanwhile."""

UPDATES_BATCH = 1000
"""Updates of one batch; of several of one task only the last is looked at."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True)
class Context:
    """The gateway's connections and what works on them."""

    settings: GatewaySettings
    pool: Pool
    blobs: BlobStore
    tasks: Tasks
    uploads: Uploads
    control: Control
    hub: Hub
    watch: StageWatch
    embedder: Embedder
    vectors: VectorStore

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: GatewaySettings) -> AsyncIterator[Self]:
        """Open everything, and close it at the end. Neither Kafka nor PostgreSQL need be there yet."""
        async with AsyncExitStack() as stack:  # closes in the opposite order, whatever one of them raises
            pool = await open_pool(settings)
            stack.push_async_callback(pool.close)
            embedder = create_embedder(settings)
            stack.push_async_callback(embedder.aclose)
            vectors = await create_vector_store(settings, model_name(settings), embedding_dimension(settings))
            stack.push_async_callback(vectors.aclose)
            watch = StageWatch(settings)
            stack.push_async_callback(watch.aclose)
            publisher = Publisher(settings)
            stack.push_async_callback(publisher.aclose)
            blobs, tasks = BlobStore(settings), Tasks(pool)
            outbox = Outbox(tasks, publisher)
            stack.push_async_callback(outbox.aclose)
            uploads = Uploads(blobs, tasks, outbox, max_bytes=settings.max_upload_bytes)
            hub = Hub(tasks)
            await stack.enter_async_context(_connection(settings, publisher, hub))
            await stack.enter_async_context(periodically(RESYNC_INTERVAL, hub.resync))
            await stack.enter_async_context(periodically(LOOK_INTERVAL, watch.observe))
            yield cls(settings, pool, blobs, tasks, uploads, Control(tasks, outbox), hub, watch, embedder, vectors)


@asynccontextmanager
async def _connection(settings: GatewaySettings, publisher: Publisher, hub: Hub) -> AsyncIterator[None]:
    """Connect to Kafka in the background, however long that takes, and listen to the updates from then on."""
    broker = Broker(settings)
    subscribe(broker, TASK_UPDATES, hub, max_records=UPDATES_BATCH)
    connecting = asyncio.create_task(_connect(publisher, broker, hub))
    try:
        yield
    finally:
        connecting.cancel()
        with suppress(asyncio.CancelledError):
            await connecting
        await broker.stop()


async def _connect(publisher: Publisher, broker: Broker, hub: Hub) -> None:
    while True:
        try:
            await publisher.start()
            await broker.start()
            await hub.resync()
        except Exception as error:  # noqa: BLE001  whatever it is, without the updates no stream is live
            logger.warning("not connected to Kafka yet", error=repr(error))
            await asyncio.sleep(RECONNECT_PAUSE.total_seconds())
        else:
            return
