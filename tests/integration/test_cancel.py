"""Cancellations of tasks: decided by the gateway, against a tracker that folds at the same time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from services.gateway.control import Control
from services.gateway.outbox import Outbox
from services.gateway.problems import TaskConflictError
from services.gateway.tasks import Tasks
from services.tracker.dispatcher import GRACE, Dispatcher
from services.tracker.events import EventFolder
from services.tracker.store import TaskStore
from shared.clock import now
from shared.database.durations import read_durations
from shared.database.pool import Pool, acquire
from shared.events import Stage, TaskCanceled, TaskEvent, TaskUpdated
from shared.kafka import Publisher
from shared.tasks import FINAL, TaskRow, canceled, update_of
from shared.topics import TASK_CONTROL, TASK_EVENTS, TASK_UPDATES
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import Ends, KafkaLab
from tests.support.stack_thread import StackThread
from tests.support.task_events import START, current, failed, log_of, new_task, retried

SMALL = ((2, 1),)
"""Pages and parts of a document."""

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


@pytest.fixture
async def outbox(tasks: Tasks, publisher: Publisher) -> AsyncIterator[Outbox]:
    outbox = Outbox(tasks, publisher)
    yield outbox
    await outbox.aclose()


@pytest.fixture
def control(tasks: Tasks, outbox: Outbox) -> Control:
    return Control(tasks, outbox)


@pytest.fixture
async def ends(lab: KafkaLab) -> Ends:
    """Where the cancellations ended before the test."""
    return await lab.ends(TASK_CONTROL.name)


async def told(lab: KafkaLab, ends: Ends, count: int) -> list[TaskCanceled]:
    records = await lab.read(TASK_CONTROL.name, count, since=ends)
    events = [TaskCanceled.model_validate_json(record.value or b"") for record in records]
    assert [record.key for record in records] == [str(event.task_id).encode() for event in events]
    return events


async def running(tasks: Tasks, pool: Pool, events: int = 3) -> TaskRow:
    """Return a task at work, of which the first so many events are folded."""
    task = new_task(at=now())
    await tasks.insert(replace(task, dispatched_at=task.created_at))
    await TaskStore(pool).fold(log_of(task, SMALL)[:events])
    return await current(tasks, task)


async def snapshot(tasks: Tasks, pool: Pool, task: TaskRow) -> tuple[object, ...]:
    """Return all that is kept about a task."""
    async with acquire(pool) as connection:
        units = await connection.fetch("SELECT * FROM task_units ORDER BY step, shard, part")
        retries = await connection.fetch("SELECT * FROM task_retries")
        return await current(tasks, task), units, retries, await read_durations(connection, "task")


async def test_a_task_is_canceled_at_once_and_everybody_is_told(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool, control: Control, outbox: Outbox
) -> None:
    task, updates = await running(tasks, pool), await lab.ends(TASK_UPDATES.name)
    row = await control.cancel(task)
    assert (row.status, row.progress, row.version) == ("canceled", task.progress, task.version + 1)
    assert (await current(tasks, task)).status == "canceled"
    await outbox.aclose()
    assert await told(lab, ends, 1) == [canceled(row)]
    [update] = await lab.read(TASK_UPDATES.name, 1, since=updates)
    assert TaskUpdated.model_validate_json(update.value or b"") == update_of(row)
    assert (await current(tasks, task)).dispatched_at is not None


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_a_task_that_is_over_is_not_canceled_and_the_answer_says_what_it_is(
    lab: KafkaLab, ends: Ends, tasks: Tasks, control: Control, status: str
) -> None:
    task = replace(new_task(), status=status, completed_at=START, dispatched_at=START)
    await tasks.insert(task)
    with pytest.raises(TaskConflictError, match=f"the task is {status} already"):
        await control.cancel(task)
    assert await current(tasks, task) == task
    assert await told(lab, ends, 0) == []


async def test_a_task_that_was_deleted_meanwhile_is_not_canceled(tasks: Tasks, control: Control) -> None:
    with pytest.raises(TaskConflictError, match="the task is deleted already"):
        await control.cancel(new_task())


@asynccontextmanager
async def locked(pool: Pool, task: TaskRow) -> AsyncIterator[None]:
    """Hold the lock of a task's row."""
    async with acquire(pool) as connection, connection.transaction():
        await connection.execute("SELECT FROM tasks WHERE task_id = $1 FOR UPDATE", task.task_id)
        yield


async def in_line(pool: Pool, count: int) -> None:
    """Wait until so many statements wait for a lock."""

    async def check() -> None:
        async with acquire(pool) as connection:
            assert await connection.fetchval(WAITING) == count

    await eventually(check)


async def test_whoever_is_first_at_the_row_decides_and_the_other_one_sees_it(
    tasks: Tasks, pool: Pool, control: Control
) -> None:
    completed_first, canceled_first = [await running(tasks, pool) for _ in range(2)]
    async with AsyncExitStack() as locks, asyncio.TaskGroup() as group:
        for task in (completed_first, canceled_first):
            await locks.enter_async_context(locked(pool, task))
        fold = group.create_task(TaskStore(pool).fold(log_of(completed_first, SMALL)))
        await in_line(pool, 1)
        late_cancel = group.create_task(_outcome(control, completed_first))
        await in_line(pool, 2)
        cancel = group.create_task(control.cancel(canceled_first))
        await in_line(pool, 3)
        late_fold = group.create_task(TaskStore(pool).fold(log_of(canceled_first, SMALL)))
        await in_line(pool, 4)
        await locks.aclose()
    assert [task.status for task in fold.result().ended] == ["completed"]
    assert late_cancel.result() == "the task is completed already; only one that is pending or running can be canceled"
    assert cancel.result().status == "canceled"
    assert list(late_fold.result().ended) == []
    assert (await current(tasks, canceled_first)).status == "canceled"
    assert (await current(tasks, completed_first)).status == "completed"


async def _outcome(control: Control, task: TaskRow) -> str:
    try:
        return (await control.cancel(task)).status
    except TaskConflictError as error:
        return str(error)


async def test_late_events_of_a_canceled_task_change_nothing(tasks: Tasks, pool: Pool, control: Control) -> None:
    task = await running(tasks, pool)
    await control.cancel(task)
    before = await snapshot(tasks, pool, task)
    late = [failed(task, Stage.INDEX, 0, 0, START), retried(task, Stage.INDEX, 0, 0, START), *log_of(task, SMALL)]
    folded = await TaskStore(pool).fold(late)
    after = await snapshot(tasks, pool, task)
    assert _settled(after) == _settled(before)
    assert list(folded.ended) == []


def _settled(snapshot: tuple[object, ...]) -> tuple[object, ...]:
    """Leave out when the cancellation was published, which happens in the background."""
    row, *others = snapshot
    assert isinstance(row, TaskRow)
    return replace(row, dispatched_at=None), *others


async def test_what_was_indexed_after_the_cancellation_is_removed_after_it(
    lab: KafkaLab, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    """Each late report of a part brings a removal that is younger than it; other reports do not."""
    await lab.catch_up(TASK_EVENTS)
    task = await running(tasks, pool)
    row = await tasks.cancel(task.owner, task.task_id, now())
    assert row
    await tasks.mark_dispatched(row, now())
    ends = await lab.ends(TASK_CONTROL.name)
    *others, last = log_of(task, SMALL)
    async with lab.consuming(TASK_EVENTS, EventFolder(TaskStore(pool), publisher)):
        for event in others:
            await send(lab, event)
        await eventually(lambda: folded(lab))
        assert await told(lab, ends, 0) == []
        await send(lab, last)
        assert await told(lab, ends, 1) == [canceled(row)]


async def send(lab: KafkaLab, event: TaskEvent) -> None:
    await lab.send(TASK_EVENTS.name, event.model_dump_json().encode(), key=str(event.task_id).encode())


async def folded(lab: KafkaLab) -> None:
    ends = await lab.ends(TASK_EVENTS.name)
    committed = await lab.committed(TASK_EVENTS)
    assert {partition.partition: end for partition, end in ends.items() if end} == committed


async def test_a_cancellation_while_kafka_is_away_holds_at_once_and_is_told_later(
    lab: KafkaLab,
    ends: Ends,
    tasks: Tasks,
    pool: Pool,
    control: Control,
    outbox: Outbox,
    publisher: Publisher,
    stack_thread: StackThread,
) -> None:
    task = await running(tasks, pool)
    with stack_thread.frozen("kafka"):
        row = await before_long(control.cancel(task))
        assert (await current(tasks, task)).status == "canceled"
        await before_long(outbox.aclose())  # the gateway gives up
    assert (await current(tasks, task)).dispatched_at is None

    async def dispatched() -> None:
        assert await Dispatcher(pool, publisher, lab.settings, lambda: now() + GRACE).dispatch() == 1

    await eventually(dispatched)
    assert (await current(tasks, task)).dispatched_at is not None
    control_log = await lab.ends(TASK_CONTROL.name)
    events = await told(lab, ends, sum(control_log.values()) - sum(ends.values()))
    assert set(events) == {canceled(row)}


async def test_an_upload_that_is_canceled_before_it_was_published_stays_canceled(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool, control: Control, outbox: Outbox, publisher: Publisher
) -> None:
    task = new_task(at=now())
    await tasks.insert(task)
    row = await control.cancel(task)
    await tasks.mark_dispatched(task, now())  # by the upload, which was being published all the while
    await outbox.aclose()
    assert await told(lab, ends, 1) == [canceled(row)]
    folded = await TaskStore(pool).fold(log_of(task, SMALL))
    assert [task.status for task in folded.tasks] == ["canceled"]
    assert [task.task_id for task in folded.canceled] == [task.task_id]
