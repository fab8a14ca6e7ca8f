"""One Kafka and one PostgreSQL for all tests that ask for them; each test has its own topics and empty tables."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr

from deploy.local import StackOptions
from services.gateway.tasks import Tasks
from shared.database.pool import Pool, acquire, open_pool
from shared.kafka import Publisher
from shared.settings import BlobSettings, KafkaSettings, VectorSettings
from tests.support.eventually import PATIENCE
from tests.support.kafka_lab import KafkaLab
from tests.support.stack_thread import StackThread

EMPTY = "TRUNCATE tasks, task_units, task_retries, duration_counts, chunks"


class StackSettings(KafkaSettings, VectorSettings, BlobSettings):
    """Where everything is."""


@pytest.fixture(scope="session")
def stack_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackThread]:
    options = StackOptions(data=tmp_path_factory.mktemp("stack"), port=0, services=())
    with StackThread(options) as running:
        yield running


@pytest.fixture(scope="session")
def settings(stack_thread: StackThread) -> StackSettings:
    environment = stack_thread.stack.environment
    return StackSettings(
        kafka_bootstrap_servers=environment["KAFKA_BOOTSTRAP_SERVERS"],
        database_url=SecretStr(environment["DATABASE_URL"]),
        blob_url=environment["BLOB_URL"],
    )


@pytest.fixture
async def nothing_left_running() -> AsyncIterator[None]:
    """The drain barrier: a handler or client that a test leaves behind fails that test, not the next one."""
    yield
    ours = asyncio.current_task()
    left = [task for task in asyncio.all_tasks() if task is not ours]
    if left:
        await asyncio.wait(left, timeout=PATIENCE.total_seconds())
    assert not [task for task in left if not task.done()]


@pytest.fixture
async def lab(settings: StackSettings, nothing_left_running: None) -> AsyncIterator[KafkaLab]:
    async with KafkaLab(settings) as lab:
        yield lab


@pytest.fixture
async def publisher(settings: StackSettings, nothing_left_running: None) -> AsyncIterator[Publisher]:
    publisher = Publisher(settings)
    await publisher.start()
    yield publisher
    await publisher.aclose()


@pytest.fixture
async def pool(settings: StackSettings, nothing_left_running: None) -> AsyncIterator[Pool]:
    """A pool on a database without any rows."""
    pool = await open_pool(settings)
    async with acquire(pool) as connection:
        await connection.execute(EMPTY)
    yield pool
    await pool.close()


@pytest.fixture
def tasks(pool: Pool) -> Tasks:
    return Tasks(pool)
