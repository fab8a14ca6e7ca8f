"""Replays of failed tasks: decided by the gateway, sent out by the tracker's dispatcher, and what comes of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from services.gateway.control import Control
from services.gateway.outbox import Outbox
from services.gateway.problems import TaskConflictError
from services.gateway.tasks import Tasks
from services.tracker.dispatcher import Dispatcher
from services.tracker.store import TaskStore
from shared.broker import Record
from shared.database.durations import read_durations
from shared.database.pool import Pool, acquire
from shared.errors import EmbeddingRejectedError
from shared.events import (
    DeadLetter,
    DocumentCompleted,
    DocumentSubmitted,
    PagesRequested,
    Stage,
    Step,
    TaskEvent,
    TaskUpdated,
)
from shared.kafka import Publisher
from shared.retry import route
from shared.tasks import TaskRow, completed, submitted, update_of
from shared.topics import (
    CHUNKS_EMBEDDED,
    CHUNKS_EXTRACTED,
    DOCUMENTS_COMPLETED,
    DOCUMENTS_SUBMITTED,
    PAGES_REQUESTED,
    TASK_UPDATES,
    Topic,
)
from tests.support import builders
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import Ends, KafkaLab
from tests.support.stack_thread import StackThread
from tests.support.task_events import SECOND, START, current, embedded, failed, indexed, log_of, new_task, retried

TOPICS = (DOCUMENTS_SUBMITTED, PAGES_REQUESTED, CHUNKS_EXTRACTED, CHUNKS_EMBEDDED, DOCUMENTS_COMPLETED, TASK_UPDATES)
"""What a replay may publish on."""

BYTES = b'{"of no meaning": "but kept"}'
FOREIGN = [("traceparent", b"00-11-22-01"), ("odd", b"\xff\x00"), ("odd", b"again")]

TWO_SHARDS = ((64, 2), (64, 2))
"""Pages and parts of a document of 128 pages."""


@dataclass
class World:
    """A gateway and a tracker, and what they publish."""

    lab: KafkaLab
    pool: Pool
    tasks: Tasks
    publisher: Publisher
    ends: Mapping[Topic, Ends]

    async def fold(self, *events: TaskEvent) -> None:
        await TaskStore(self.pool).fold(events)

    async def replay(self, task: TaskRow) -> TaskRow:
        return await Control(self.tasks, Outbox(self.tasks, self.publisher)).replay(task)

    async def dispatch(self) -> int:
        return await Dispatcher(self.pool, self.publisher, self.lab.settings).dispatch()

    async def published(self, counts: Mapping[Topic, int]) -> list[Record]:
        """Return what was published since the test began, topic by topic; on topics that are not named nothing was."""
        records = [await self.lab.read(topic.name, counts.get(topic, 0), since=end) for topic, end in self.ends.items()]
        return [record for of_topic in records for record in of_topic]

    async def dies(self, task: TaskRow, topic: Topic, unit: str, value: bytes = BYTES) -> DeadLetter:
        """Let a record die, as a stage does."""
        source = builders.record(value, topic=topic.name, key=f"{task.task_id}{unit}".encode(), headers=FOREIGN)
        died = route(source, EmbeddingRejectedError("no"), topic=topic, now=START).record
        [at] = await self.publisher.publish([died])
        return DeadLetter(topic=at.topic, partition=at.partition, offset=at.offset)

    async def failed_task(self, *, part: int = 1, letter: DeadLetter | None = None) -> TaskRow:
        """Return a task of four parts, of which one in the second shard could not be embedded."""
        task = replace(new_task(), dispatched_at=START)
        await self.tasks.insert(task)
        letter = letter or await self.dies(task, CHUNKS_EXTRACTED, f":1:{part}")
        done = [event for event in log_of(task, TWO_SHARDS) if not _is_of(event, part)]
        await self.fold(*done, part_failed(task, part, dead_letter=letter))
        return await current(self.tasks, task)

    async def durations(self) -> dict[str, int]:
        async with acquire(self.pool) as connection:
            counted = await read_durations(connection, "task")
        return {label.removeprefix("document_process/"): each.total for label, each in counted.items()}


def _is_of(event: TaskEvent, part: int) -> bool:
    return getattr(event, "shard", None) == 1 and getattr(event, "part", None) == part


def part_failed(task: TaskRow, part: int = 1, **changes: Any) -> TaskEvent:
    return failed(task, Stage.EMBED, 1, part, START + SECOND, **{"step": Step.EMBED} | changes)


def part_done(task: TaskRow, part: int = 1) -> list[TaskEvent]:
    return [embedded(task, 1, part, 32_000, START + 90 * SECOND), indexed(task, 1, part, 32_000, START + 91 * SECOND)]


def headers(record: Record) -> dict[str, bytes]:
    return dict(record.headers)


@pytest.fixture
async def world(lab: KafkaLab, pool: Pool, tasks: Tasks, publisher: Publisher) -> World:
    return World(lab, pool, tasks, publisher, {topic: await lab.ends(topic.name) for topic in TOPICS})


async def test_only_the_failed_part_goes_out_again_as_the_record_that_it_was(world: World) -> None:
    task = await world.failed_task()
    reopened = await world.replay(task)
    assert (reopened.status, reopened.error_code, reopened.completed_at) == ("running", None, None)
    assert reopened.progress == task.progress
    assert await world.dispatch() == 1
    again, update = await world.published({CHUNKS_EXTRACTED: 1, TASK_UPDATES: 1})
    assert (again.key, again.value) == (f"{task.task_id}:1:1".encode(), BYTES)
    assert list(again.headers) == [*FOREIGN, ("run", b"1")]
    row = await current(world.tasks, task)
    assert TaskUpdated.model_validate_json(update.value or b"") == update_of(row)
    assert row.dispatched_at is not None
    assert await world.dispatch() == 0


async def test_a_part_that_succeeds_in_its_second_run_completes_the_task_and_counts_once(world: World) -> None:
    task = await world.failed_task()
    await world.replay(task)
    await world.dispatch()
    await world.fold(*part_done(task), *part_done(task))
    await world.fold(*part_done(task))
    row = await current(world.tasks, task)
    assert (row.status, row.progress, row.error_code, row.embed_done, row.index_done) == ("completed", 100, None, 4, 4)
    assert (row.embed_weight, row.index_weight) == (128_000, 128_000)
    assert await world.durations() == {"failed": 1, "completed": 1}


async def test_a_part_that_fails_again_fails_the_task_again_and_may_be_replayed_again(world: World) -> None:
    task = await world.failed_task()
    for run in (1, 2):
        await world.replay(task)
        await world.dispatch()
        letter = await world.dies(task, CHUNKS_EXTRACTED, ":1:1")
        await world.fold(part_failed(task, run=run, message=f"run {run}", dead_letter=letter))
        row = await current(world.tasks, task)
        assert (row.status, row.error_message, row.replays) == ("failed", f"run {run}", run)
    await world.replay(task)
    await world.dispatch()
    *sent, _, _, _ = await world.published({CHUNKS_EXTRACTED: 3, TASK_UPDATES: 3})
    assert sorted(headers(record)["run"] for record in sent) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("dispatched", [False, True])
async def test_what_an_earlier_run_reports_late_is_no_news(world: World, *, dispatched: bool) -> None:
    task = await world.failed_task()
    await world.replay(task)
    if dispatched:
        await world.dispatch()
    before = await current(world.tasks, task)
    await world.fold(part_failed(task))
    await world.fold(part_failed(task, message="a second owner").model_copy(update={"failed_at": START + 50 * SECOND}))
    after = await current(world.tasks, task)
    assert replace(after, dispatched_at=None) == replace(before, dispatched_at=None)
    assert after.status == "running"


async def test_a_task_whose_parts_all_succeeded_meanwhile_is_completed_at_once(world: World) -> None:
    task = await world.failed_task()
    older = replace(new_task(at=START - SECOND, document=task.document_id), status="completed", pages=1)
    await world.tasks.insert(replace(older, dispatched_at=START))
    await world.fold(*part_done(task))  # by an owner that was thought to be dead
    assert (await current(world.tasks, task)).status == "failed"
    reopened = await world.replay(task)
    assert await world.dispatch() == 1
    row = await current(world.tasks, task)
    assert (row.status, row.progress, row.next_retry_at) == ("completed", 100, None)
    assert row.version > reopened.version, "or those who have seen it reopened would not be told"
    retirement, update = await world.published({DOCUMENTS_COMPLETED: 1, TASK_UPDATES: 1})
    assert DocumentCompleted.model_validate_json(retirement.value or b"") == completed(row)
    assert TaskUpdated.model_validate_json(update.value or b"") == update_of(row)
    assert await world.durations() == {"failed": 1, "completed": 1}


async def test_a_part_whose_dead_letter_kafka_has_deleted_is_made_again_from_the_pdf(world: World) -> None:
    task = new_task()
    letter = await world.dies(task, CHUNKS_EXTRACTED, ":1:1")
    task = await world.failed_task(letter=letter)
    admin = AIOKafkaAdminClient(bootstrap_servers=world.lab.settings.kafka_bootstrap_servers)
    await admin.start()
    [partition] = await world.lab.partitions(letter.topic)
    await admin.delete_records({partition: RecordsToDelete(before_offset=letter.offset + 1)})
    await admin.close()
    await world.replay(task)
    assert await world.dispatch() == 1
    await asks_for_the_part(world, task)


async def test_a_part_whose_record_was_too_large_to_be_kept_is_made_again_from_the_pdf(world: World) -> None:
    task = new_task()
    letter = await world.dies(task, CHUNKS_EXTRACTED, ":1:1", bytes(3_000_000))
    task = await world.failed_task(letter=letter)
    await world.replay(task)
    assert await world.dispatch() == 1
    await asks_for_the_part(world, task)


async def asks_for_the_part(world: World, task: TaskRow) -> None:
    asked, _ = await world.published({PAGES_REQUESTED: 1, TASK_UPDATES: 1})
    request = PagesRequested.model_validate_json(asked.value or b"")
    assert (asked.key, headers(asked)) == (f"{task.task_id}:1".encode(), {"run": b"1"})
    assert (request.task_id, request.blob_url, request.engine) == (task.task_id, task.blob_url, "pdfium")
    assert (request.shard, request.first_page, request.last_page, request.parts) == (1, 65, 128, (1,))


@pytest.mark.parametrize("topic", ["deleted.by.people.dlq", CHUNKS_EXTRACTED.dead_letters])
async def test_a_dead_letter_that_never_was_is_made_again_and_holds_nobody_up(world: World, topic: str) -> None:
    task = await world.failed_task(letter=DeadLetter(topic=topic, partition=0, offset=10**9))
    await world.replay(task)
    assert await before_long(world.dispatch()) == 1
    await asks_for_the_part(world, task)


@pytest.mark.parametrize("step", [Step.PLAN, Step.PARSE])
async def test_what_failed_before_there_were_parts_is_asked_for_again(world: World, step: Step) -> None:
    task = replace(new_task(), dispatched_at=START)
    await world.tasks.insert(task)
    plan = log_of(task, TWO_SHARDS)[:1] if step is Step.PARSE else []
    await world.fold(*plan, failed(task, Stage.PARSE, 1 if plan else 0, 0, START, step=step))
    await world.replay(task)
    await world.dispatch()
    asked, _ = await world.published({PAGES_REQUESTED if plan else DOCUMENTS_SUBMITTED: 1, TASK_UPDATES: 1})
    assert headers(asked) == {"run": b"1"}
    if plan:
        assert PagesRequested.model_validate_json(asked.value or b"").parts is None
    else:
        assert DocumentSubmitted.model_validate_json(asked.value or b"") == submitted(task)


async def test_a_unit_that_cannot_be_holds_up_neither_its_task_nor_others(world: World) -> None:
    """An undecodable record fails what its key names, which may be anything."""
    task, other = replace(new_task(), dispatched_at=START), new_task()
    await world.tasks.insert(task)
    await world.fold(*log_of(task, TWO_SHARDS)[:-1], failed(task, Stage.PARSE, 99, 0, START))
    await world.replay(task)
    await world.tasks.insert(other)
    assert await before_long(world.dispatch()) == 2
    await world.fold(log_of(task, TWO_SHARDS)[-1])
    assert (await current(world.tasks, task)).status == "completed"


async def test_a_task_that_is_all_done_but_for_a_unit_that_cannot_be_is_completed(world: World) -> None:
    task = replace(new_task(), dispatched_at=START)
    await world.tasks.insert(task)
    await world.fold(failed(task, Stage.PARSE, 99, 0, START), *log_of(task, TWO_SHARDS))
    assert (await current(world.tasks, task)).status == "failed"
    await world.replay(task)
    await world.dispatch()
    assert (await current(world.tasks, task)).status == "completed"


async def test_a_task_of_which_nothing_failed_has_all_asked_for_that_is_not_done(world: World) -> None:
    """Such as one that timed out: its second shard was never heard of, and a part of the first one only half."""
    task = replace(new_task(), dispatched_at=START)
    await world.tasks.insert(task)
    plan, shard, *parts = log_of(task, TWO_SHARDS)[:6]
    await world.fold(plan, shard, parts[0], parts[2], parts[3])
    timed_out = {"status": "failed", "completed_at": START, "failed_at": START, "error_code": "task_timeout"}
    async with acquire(world.pool) as connection:
        columns = ", ".join(f"{name} = ${n}" for n, name in enumerate(timed_out, 2))
        await connection.execute(f"UPDATE tasks SET {columns} WHERE task_id = $1", task.task_id, *timed_out.values())  # noqa: S608
    await world.replay(task)
    await world.dispatch()
    *asked, _ = await world.published({PAGES_REQUESTED: 2, TASK_UPDATES: 1})
    requests = [PagesRequested.model_validate_json(record.value or b"") for record in asked]
    assert {request.shard: request.parts for request in requests} == {0: (0,), 1: None}


async def test_a_retry_that_still_pends_is_told_again_after_a_replay(world: World) -> None:
    task = await world.failed_task()
    await world.fold(retried(task, Stage.EMBED, 1, 2, START, parts=3))
    assert (await current(world.tasks, task)).next_retry_at is None
    await world.replay(task)
    await world.dispatch()
    row = await current(world.tasks, task)
    assert row.message(START).startswith("embedding part 3/3 of shard 2/2 failed: rate limited; trying again in 60 s")


async def test_only_a_failed_task_can_be_replayed_and_the_answer_says_what_it_is(world: World) -> None:
    task = await world.failed_task()
    await world.replay(task)
    with pytest.raises(TaskConflictError, match="the task is running; only a failed one can be replayed"):
        await world.replay(task)
    await world.dispatch()
    await world.fold(*part_done(task))
    with pytest.raises(TaskConflictError, match="the task is completed"):
        await world.replay(task)


async def test_of_two_replays_at_once_one_is_made(world: World) -> None:
    task = await world.failed_task()
    outcomes = await asyncio.gather(world.replay(task), world.replay(task), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {TaskConflictError, TaskRow}
    assert (await current(world.tasks, task)).replays == 1


async def test_two_trackers_send_a_replay_out_once_or_twice_and_it_counts_once(world: World) -> None:
    task = await world.failed_task()
    await world.replay(task)
    assert sum(await asyncio.gather(world.dispatch(), world.dispatch())) == 1
    async with acquire(world.pool) as connection:  # as if the tracker had died before its commit
        await connection.execute("UPDATE tasks SET dispatched_at = NULL")
    assert await world.dispatch() == 1
    await world.published({CHUNKS_EXTRACTED: 2, TASK_UPDATES: 2})
    await world.fold(*part_done(task), *part_done(task))
    row = await current(world.tasks, task)
    assert (row.status, row.embed_done, row.index_done) == ("completed", 4, 4)


async def test_a_replay_while_kafka_is_away_is_accepted_and_made_later(world: World, stack_thread: StackThread) -> None:
    task = await world.failed_task()
    with stack_thread.frozen("kafka"):
        reopened = await before_long(world.replay(task))
        assert reopened.status == "running"
        assert await before_long(world.dispatch()) == 0
        assert (await current(world.tasks, task)).dispatched_at is None

    async def dispatched() -> None:
        assert await world.dispatch() == 1

    await eventually(dispatched)
    [again, _] = await world.published({CHUNKS_EXTRACTED: 1, TASK_UPDATES: 1})
    assert again.value == BYTES
