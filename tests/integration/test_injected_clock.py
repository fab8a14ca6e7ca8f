"""Clocks that jump: nothing is lost or given up early, and nothing waits for ever once they are right again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTimestampError

from services.gateway.tasks import Tasks
from services.tracker import lost
from services.tracker.backlog import oldest_waiting
from services.tracker.dispatcher import GRACE, Dispatcher
from services.tracker.store import TaskStore
from services.tracker.sweep import discard_again
from services.tracker.watchdog import Watchdog
from shared.blobs import BlobStore
from shared.cleanup import clean_up
from shared.clock import now
from shared.database.pool import Pool, acquire
from shared.kafka import Publisher, client_options
from shared.settings import BlobSettings, KafkaSettings
from shared.tasks import TaskRow
from shared.topics import DOCUMENTS_SUBMITTED, TASK_CONTROL
from tests.support.kafka_lab import Ends, KafkaLab
from tests.support.task_events import current, embedded, new_task, over, planned

HOUR, DECADE = timedelta(hours=1), timedelta(days=3650)

JUMPS = pytest.mark.parametrize("jump", [HOUR, -HOUR, DECADE, -DECADE], ids=["1h", "-1h", "10y", "-10y"])

TIMEOUT = timedelta(minutes=15)

KEPT = timedelta(days=30)

PASS = """
    UPDATE tasks SET updated_at = updated_at - $1::interval, dispatched_at = dispatched_at - $1,
        redispatched_at = redispatched_at - $1, completed_at = completed_at - $1
"""


@dataclass
class Clock:
    """A clock that is ahead by `jump`, or back by it."""

    jump: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return now() + self.jump


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass(frozen=True)
class Parts:
    """What works by one clock."""

    clock: Clock
    tasks: Tasks
    store: TaskStore
    dispatcher: Dispatcher
    watchdog: Watchdog


@pytest.fixture
def parts(clock: Clock, tasks: Tasks, pool: Pool, publisher: Publisher, settings: KafkaSettings) -> Parts:
    return Parts(
        clock,
        tasks,
        TaskStore(pool, clock),
        Dispatcher(pool, publisher, settings, clock),
        Watchdog(pool, publisher, partial(oldest_waiting, settings), TIMEOUT, clock),
    )


@pytest.fixture
def watchdog(parts: Parts) -> Watchdog:
    return parts.watchdog


@pytest.fixture
def dispatcher(parts: Parts) -> Dispatcher:
    return parts.dispatcher


@pytest.fixture
async def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(BlobSettings(blob_url=tmp_path.as_uri()))


@pytest.fixture
async def ends(lab: KafkaLab) -> Ends:
    return await lab.ends(DOCUMENTS_SUBMITTED.name)


async def pass_by(pool: Pool, time: timedelta) -> None:
    """Let time pass: everything that is in the tables is older by it."""
    async with acquire(pool) as connection:
        await connection.execute(PASS, time)


async def uploaded(tasks: Tasks, at: datetime) -> TaskRow:
    """Insert a task whose record is on its way."""
    task = replace(new_task(at=at), dispatched_at=at)
    await tasks.insert(task)
    return task


@JUMPS
async def test_a_task_that_waits_is_left_alone(
    lab: KafkaLab, tasks: Tasks, parts: Parts, publisher: Publisher, jump: timedelta
) -> None:
    await lab.catch_up_everywhere()
    task = await uploaded(tasks, now())
    await publisher.publish([lost.document(task)])
    ends = await lab.ends(DOCUMENTS_SUBMITTED.name)
    for parts.clock.jump in (jump, timedelta(0), jump):
        assert await parts.watchdog.look() == 0
    assert await current(tasks, task) == task
    assert await lab.ends(DOCUMENTS_SUBMITTED.name) == ends


@JUMPS
async def test_a_task_that_moves_is_not_given_up_though_the_clock_of_a_tracker_is_wrong(
    lab: KafkaLab, pool: Pool, tasks: Tasks, watchdog: Watchdog, jump: timedelta
) -> None:
    await lab.catch_up_everywhere()
    task, store = await uploaded(tasks, now()), TaskStore(pool, Clock(jump))
    for part in range(5):
        await pass_by(pool, TIMEOUT * 0.9)
        await store.fold([embedded(task, 0, part, 1, now())])
        await watchdog.look()
    assert (await current(tasks, task)).status == "running"


async def noted_by_a_gateway(wrong: Parts) -> TaskRow:
    return await uploaded(wrong.tasks, wrong.clock())


async def noted_by_a_dispatcher(wrong: Parts) -> TaskRow:
    task = new_task(at=wrong.clock() - 2 * GRACE)
    await wrong.tasks.insert(task)
    assert await wrong.dispatcher.dispatch() == 1
    return task


async def noted_by_a_fold(wrong: Parts) -> TaskRow:
    task = await uploaded(wrong.tasks, now())
    await wrong.store.fold([planned(task, [(1, 1)], now())])
    return task


async def noted_by_a_watchdog(wrong: Parts) -> TaskRow:
    task = await uploaded(wrong.tasks, now() - 2 * TIMEOUT)
    await wrong.watchdog.look()
    return task


@JUMPS
@pytest.mark.parametrize(
    "note", [noted_by_a_gateway, noted_by_a_dispatcher, noted_by_a_fold, noted_by_a_watchdog], ids=lambda f: f.__name__
)
async def test_lost_work_ends_once_the_clock_is_right(
    lab: KafkaLab, parts: Parts, pool: Pool, jump: timedelta, note: Callable[[Parts], Awaitable[TaskRow]]
) -> None:
    parts.clock.jump = jump
    task = await note(parts)
    parts.clock.jump = timedelta(0)
    for _ in range(3):
        await lab.catch_up_everywhere()  # whatever was sent out is lost
        await parts.watchdog.look()
        await pass_by(pool, 2 * TIMEOUT)
    row = await current(parts.tasks, task)
    assert (row.status, row.error_code) == ("failed", "task_timeout")


@JUMPS
async def test_what_a_gateway_has_left_is_published_whatever_its_clock_said(
    lab: KafkaLab, ends: Ends, tasks: Tasks, dispatcher: Dispatcher, clock: Clock, pool: Pool, jump: timedelta
) -> None:
    clock.jump = jump
    task = new_task(at=clock())
    await tasks.insert(task)
    clock.jump = timedelta(0)
    await pass_by(pool, 2 * GRACE)
    assert await dispatcher.dispatch() == 1
    assert [record.key for record in await lab.read(DOCUMENTS_SUBMITTED.name, 1, since=ends)] == [
        str(task.task_id).encode()
    ]


@JUMPS
async def test_a_dispatcher_publishes_everything_though_its_clock_jumps(
    lab: KafkaLab, ends: Ends, tasks: Tasks, dispatcher: Dispatcher, clock: Clock, pool: Pool, jump: timedelta
) -> None:
    task = new_task(at=now())
    await tasks.insert(task)
    await pass_by(pool, 2 * GRACE)
    for clock.jump in (jump, timedelta(0)):
        await dispatcher.dispatch()
    assert len(await lab.read(DOCUMENTS_SUBMITTED.name, 1, since=ends)) == 1
    assert await dispatcher.dispatch() == 0


@JUMPS
async def test_clean_up_deletes_nothing_before_its_time(
    pool: Pool, tasks: Tasks, blobs: BlobStore, clock: Clock, jump: timedelta
) -> None:
    task = over(new_task(at=now()), "completed", now())
    task = replace(task, blob_url=blobs.url(f"{task.owner}/{task.task_id}.pdf"), dispatched_at=now())
    await blobs.write(task.blob_url, _content())
    await tasks.insert(task)
    clock.jump = jump
    assert await clean_up(pool, blobs, KEPT, clock=clock) == 0
    assert [blob.url async for batch in blobs.listing() for blob in batch] == [task.blob_url]

    clock.jump = timedelta(0)
    await pass_by(pool, KEPT + HOUR)
    assert await clean_up(pool, blobs, KEPT, clock=clock) == 1


@JUMPS
async def test_a_task_that_ended_by_a_wrong_clock_is_kept_as_long_as_others(
    pool: Pool, tasks: Tasks, blobs: BlobStore, jump: timedelta
) -> None:
    await tasks.insert(over(new_task(at=now()), "completed", now() + jump))
    assert await clean_up(pool, blobs, KEPT) == 0
    await pass_by(pool, KEPT + abs(jump))
    assert await clean_up(pool, blobs, KEPT) == 1


async def _content() -> AsyncIterator[bytes]:
    yield b"%PDF-1.7"


async def test_cancellations_are_published_again_after_a_jump(
    lab: KafkaLab, pool: Pool, tasks: Tasks, publisher: Publisher, clock: Clock
) -> None:
    ends = await lab.ends(TASK_CONTROL.name)
    task = over(new_task(at=now()), "canceled", now() - HOUR)
    await tasks.insert(replace(task, dispatched_at=now()))
    clock.jump = DECADE
    assert await discard_again(pool, publisher, clock) == 0
    clock.jump = timedelta(0)
    assert await discard_again(pool, publisher, clock) == 1
    assert len(await lab.read(TASK_CONTROL.name, 1, since=ends)) == 1


async def test_kafka_takes_no_record_of_a_clock_that_is_far_ahead(lab: KafkaLab) -> None:
    """So a retry that such a clock would schedule is not: its batch comes again until the clock is right."""
    topic = await lab.topic()
    async with AIOKafkaProducer(**client_options(lab.settings)) as producer:
        with pytest.raises(InvalidTimestampError):
            await producer.send_and_wait(topic.name, b"x", timestamp_ms=int((now() + 2 * HOUR).timestamp() * 1000))
