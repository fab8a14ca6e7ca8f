import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.tasks import Tasks
from services.tracker.events import EventFolder
from services.tracker.fold import Unit, unit_of
from services.tracker.store import Folded, TaskStore
from shared.database.durations import Durations, read_durations
from shared.database.pool import Pool, acquire, open_pool
from shared.events import PartEmbedded, Stage, TaskEvent, UnitFailed
from shared.kafka import Publisher
from shared.settings import DatabaseSettings
from shared.tasks import TaskRow
from shared.topics import TASK_EVENTS
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.task_events import (
    SECOND,
    START,
    Shard,
    embedded,
    extracted,
    failed,
    log_of,
    new_task,
    planned,
)

SMALL = ((2, 2), (1, 0), (3, 1))
"""Shards of pages and parts; the second one has no text."""

OWN = {"task_id", "document_id"}
"""What differs between two tasks of the same content."""

BY_BATCHES = {"version", "updated_at"}
"""What depends on how events come in batches."""

examples = settings(
    max_examples=25,
    deadline=None,  # a database answers when it likes
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # every example has tasks of its own
)


@pytest.fixture
def store(pool: Pool) -> TaskStore:
    return TaskStore(pool, clock=lambda: START)


@pytest.fixture
async def second_pool(settings: DatabaseSettings, pool: Pool) -> AsyncIterator[Pool]:
    second = await open_pool(settings)
    yield second
    await second.close()


async def insert(tasks: Tasks, count: int = 1) -> list[TaskRow]:
    rows = [new_task() for _ in range(count)]
    for row in rows:
        await tasks.insert(row)
    return rows


async def read(tasks: Tasks, task: TaskRow) -> TaskRow:
    row = await tasks.get(task.owner, task.task_id)
    assert row is not None
    return row


async def content(tasks: Tasks, task: TaskRow) -> dict[str, object]:
    row = asdict(await read(tasks, task))
    return {name: value for name, value in row.items() if name not in OWN | BY_BATCHES}


async def durations(pool: Pool, series: str) -> dict[str, Durations]:
    async with acquire(pool) as connection:
        return await read_durations(connection, series)


def with_failures(log: Sequence[TaskEvent], chosen: Sequence[int]) -> list[TaskEvent]:
    """Let some units fail, every second one at the same time as the one before; what would follow on them is gone."""
    broken = [unit_of(log[number]) for number in chosen]
    left = [event for event in log if not any(_follows(unit_of(event), unit) for unit in broken)]
    failures = [
        UnitFailed(
            task_id=log[0].task_id,
            stage=Stage(unit.stage),
            shard=unit.shard,
            part=unit.part,
            code="permanent_failure",
            message=f"failure {n}",
            failed_at=START + timedelta(seconds=n // 2),
        )
        for n, unit in enumerate(broken)
    ]
    return [*left, *failures]


def _follows(unit: Unit, broken: Unit) -> bool:
    stages = [*Stage]
    if unit.stage not in stages or unit.shard != broken.shard:
        return False
    later = stages.index(Stage(unit.stage)) >= stages.index(Stage(broken.stage))
    return later and (broken.stage == Stage.PARSE or unit.part == broken.part)


async def test_a_log_in_order_completes_its_task(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    log = log_of(task, SMALL)
    progress = []
    for event in log:
        folded = await store.fold([event])
        progress.append(folded.tasks[0].progress)
        assert [ended.task_id for ended in folded.ended] == ([task.task_id] if event is log[-1] else [])
    assert progress == sorted(progress)
    assert progress[-1] == 100
    row = await read(tasks, task)
    assert (row.status, row.pages, row.shards, row.parts, row.chunks, row.characters) == ("completed", 6, 3, 3, 9, 300)
    assert (row.parse_done, row.embed_done, row.index_done) == (3, 3, 3)
    assert (row.parse_weight, row.embed_weight, row.index_weight) == (6000, 6000, 6000)
    assert (row.pages_without_text, row.tokens, row.model, row.dimension) == (1, 21, "a-model", 256)
    assert (row.started_at, row.completed_at) == (START, START + len(log) * SECOND)
    assert row.metadata == {"title": "A title"}
    assert row.version == 1 + len(log)


async def test_the_answer_is_what_the_database_holds(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    folded = await store.fold(log_of(task, SMALL))
    assert list(folded.tasks) == list(folded.ended) == [await read(tasks, task)]


@examples
@given(shards=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4), data=st.data())
async def test_any_order_with_duplicates_in_any_batches_ends_in_the_same_row(
    tasks: Tasks, store: TaskStore, shards: list[Shard], data: st.DataObject
) -> None:
    ordered, shuffled = await insert(tasks, 2)
    units = st.integers(1, len(log_of(ordered, shards)) - 1)
    broken = data.draw(st.one_of(st.just([]), st.lists(units, min_size=1, max_size=3, unique=True)))
    await store.fold(with_failures(log_of(ordered, shards), broken))
    log = with_failures(log_of(shuffled, shards), broken)
    duplicates = data.draw(st.lists(st.sampled_from(log), max_size=len(log)))
    events = data.draw(st.permutations([*log, *duplicates]))
    size = data.draw(st.integers(1, len(events)))
    for start in range(0, len(events), size):
        await store.fold(events[start : start + size])
    assert await content(tasks, shuffled) == await content(tasks, ordered)
    assert (await read(tasks, ordered)).status == ("failed" if broken else "completed")


@pytest.mark.parametrize("seed", range(3))
async def test_two_trackers_fold_a_log_between_them_without_deadlock(
    tasks: Tasks, store: TaskStore, pool: Pool, second_pool: Pool, seed: int
) -> None:
    alone, *many = await insert(tasks, 8)
    await store.fold(log_of(alone, SMALL))
    events = [event for task in many for event in log_of(task, SMALL)] * 2
    random.Random(seed).shuffle(events)
    half = len(events) // 2

    async def fold_all(store: TaskStore, events: Sequence[TaskEvent]) -> None:
        for start in range(0, len(events), 9):
            await store.fold(events[start : start + 9])

    await before_long(
        asyncio.gather(fold_all(TaskStore(pool), events[:half]), fold_all(TaskStore(second_pool), events[half:]))
    )
    for task in many:
        assert await content(tasks, task) == await content(tasks, alone)
    assert (await durations(pool, "task"))["document_process/completed"].total == len(many) + 1


async def test_the_same_batch_in_two_trackers_at_once_is_counted_once(
    tasks: Tasks, store: TaskStore, pool: Pool, second_pool: Pool
) -> None:
    alone, task = await insert(tasks, 2)
    await store.fold(log_of(alone, SMALL))
    log = log_of(task, SMALL)
    folded = await asyncio.gather(TaskStore(pool).fold(log), TaskStore(second_pool).fold(log))
    assert await content(tasks, task) == await content(tasks, alone)
    assert sum(len(one.ended) for one in folded) == 1
    assert [one.tasks[0].status for one in folded] == ["completed", "completed"]


async def test_events_of_a_task_that_was_deleted_are_ignored(tasks: Tasks, store: TaskStore, pool: Pool) -> None:
    gone = new_task()
    assert await store.fold(log_of(gone, SMALL)) == Folded([], [], [])
    (task,) = await insert(tasks)
    folded = await store.fold([*log_of(gone, SMALL), *log_of(task, SMALL)])
    assert [row.task_id for row in folded.tasks] == [task.task_id]
    async with acquire(pool) as connection:
        assert await connection.fetchval("SELECT count(DISTINCT task_id) FROM task_units") == 1
    assert (await durations(pool, "stage"))[Stage.PARSE].total == 3


async def test_no_events_at_all_are_fine(store: TaskStore) -> None:
    assert await store.fold([]) == Folded([], [], [])


async def test_duplicates_change_nothing_but_their_task_is_told_again(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    log = log_of(task, SMALL)
    await store.fold(log)
    before = await read(tasks, task)
    again = await store.fold([log[2], log[2], log[0]])
    assert list(again.tasks) == [before]
    assert list(again.ended) == []
    assert await read(tasks, task) == before


async def test_durations_are_counted_once_for_each_unit_and_task(tasks: Tasks, store: TaskStore, pool: Pool) -> None:
    (task,) = await insert(tasks)
    log = log_of(task, SMALL)
    await store.fold(log[:5])
    await store.fold(log + log)
    await store.fold(log)
    stages = await durations(pool, "stage")
    assert {stage: counted.total for stage, counted in stages.items()} == {
        "plan": 1,
        "parse": 3,
        "embed": 3,
        "index": 3,
    }
    assert {stage: counted.seconds for stage, counted in stages.items()} == {
        "plan": 1,
        "parse": 3,
        "embed": 3,
        "index": 3,
    }
    ended = await durations(pool, "task")
    assert {label: (counted.total, counted.seconds) for label, counted in ended.items()} == {
        "document_process/completed": (1, len(log))
    }


async def test_a_failure_ends_the_task_and_is_no_unit_of_work_in_the_durations(
    tasks: Tasks, store: TaskStore, pool: Pool
) -> None:
    (task,) = await insert(tasks)
    at = START + 9 * SECOND
    failure = failed(task, Stage.PARSE, 0, 0, at, message="needs a password")
    folded = await store.fold([failure, failure])
    assert [row.task_id for row in folded.ended] == [task.task_id]
    row = await read(tasks, task)
    assert (row.status, row.completed_at, row.progress) == ("failed", at, 0)
    assert (row.error_stage, row.error_code, row.error_message) == ("parse", "permanent_failure", "needs a password")
    assert await durations(pool, "stage") == {}
    assert (await durations(pool, "task"))["document_process/failed"].seconds == 9


async def test_work_that_is_done_after_a_failure_is_kept_and_the_task_stays_failed(
    tasks: Tasks, store: TaskStore
) -> None:
    (task,) = await insert(tasks)
    log = log_of(task, [(1, 1)])
    await store.fold([log[0], failed(task, Stage.EMBED, 0, 0, START + SECOND)])
    folded = await store.fold(log[1:])
    assert list(folded.ended) == []
    row = await read(tasks, task)
    assert (row.status, row.embed_done, row.index_done, row.progress) == ("failed", 1, 1, 99)


@pytest.mark.parametrize("together", [True, False])
async def test_a_unit_that_failed_and_then_succeeded_is_counted_as_done_once(
    tasks: Tasks, store: TaskStore, pool: Pool, *, together: bool
) -> None:
    (task,) = await insert(tasks)
    done = embedded(task, 0, 0, 1000, START)
    failure = failed(task, Stage.EMBED, 0, 0, START + SECOND)
    for batch in [[failure, done, done]] if together else [[failure], [done], [done], [failure]]:
        await store.fold(batch)
    row = await read(tasks, task)
    assert (row.embed_done, row.embed_weight, row.tokens) == (1, 1000, 7)
    assert row.status == ("running" if together else "failed")
    assert (await durations(pool, "stage"))[Stage.EMBED].total == 1


async def test_a_failure_after_the_same_unit_was_done_is_ignored(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    await store.fold(log_of(task, SMALL))
    before = await read(tasks, task)
    await store.fold([failed(task, Stage.INDEX, 0, 1, START)])
    assert await read(tasks, task) == before
    assert before.status == "completed"


@pytest.mark.parametrize("first", ["earlier", "later"])
async def test_of_two_owners_whose_same_unit_fails_the_earlier_failure_counts(
    tasks: Tasks, store: TaskStore, first: str
) -> None:
    (task,) = await insert(tasks)
    both = [failed(task, Stage.PARSE, 0, 0, START + n * SECOND, message=f"failure {n}") for n in (1, 2)]
    for event in both if first == "earlier" else reversed(both):
        await store.fold([event])
    row = await read(tasks, task)
    assert (row.failed_at, row.completed_at, row.error_message) == (START + SECOND, START + SECOND, "failure 1")


async def test_a_task_supersedes_only_where_its_document_has_another_task(tasks: Tasks, store: TaskStore) -> None:
    older, stranger = new_task(), new_task()
    newer = new_task(at=START + SECOND, document=older.document_id)
    for task in (older, newer, stranger):
        await tasks.insert(task)
    assert list((await store.fold(log_of(stranger, [(1, 1)]))).superseding) == []
    await store.fold(log_of(older, [(1, 1)]))
    for events in (log_of(newer, [(1, 1)]), log_of(newer, [(1, 1)])[:1]):  # a duplicate tells it again
        assert list((await store.fold(events)).superseding) == [await read(tasks, newer)]


async def test_where_an_older_task_ends_after_a_newer_one_it_is_the_newer_one_that_supersedes(
    tasks: Tasks, store: TaskStore
) -> None:
    older = new_task()
    newer = new_task(at=START + SECOND, document=older.document_id)
    for task in (older, newer):
        await tasks.insert(task)
    await store.fold(log_of(newer, [(1, 1)]))
    late = await store.fold(log_of(older, [(1, 1)]))
    assert [row.task_id for row in late.ended] == [older.task_id]
    assert list(late.superseding) == [await read(tasks, newer)]


async def test_a_task_that_is_not_complete_supersedes_nothing(tasks: Tasks, store: TaskStore) -> None:
    older = new_task()
    running, broken = (new_task(at=START + SECOND, document=older.document_id) for _ in range(2))
    for task in (older, running, broken):
        await tasks.insert(task)
    folded = await store.fold([*log_of(running, SMALL)[:-1], failed(broken, Stage.PARSE, 0, 0, START)])
    assert {row.status for row in folded.tasks} == {"running", "failed"}
    assert list(folded.superseding) == []


async def test_a_fold_leaves_alone_what_the_gateway_writes(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    await tasks.mark_dispatched(task.task_id, START + SECOND)
    await store.fold(log_of(task, SMALL))
    row = await read(tasks, task)
    assert row.dispatched_at == START + SECOND
    assert replace(row, **asdict(task)) == task


async def test_text_that_postgresql_cannot_hold_does_not_stop_the_fold(tasks: Tasks, store: TaskStore) -> None:
    """JSON may carry U+0000, PostgreSQL's text may not: metadata and messages come from documents and libraries."""
    (task,) = await insert(tasks)
    plan = planned(task, [(1, 1)], START).model_copy(update={"metadata": {"ti\0tle": "a\0b"}})
    part = embedded(task, 0, 0, 1000, START)
    assert isinstance(part, PartEmbedded)
    model = part.model_copy(update={"model": "m\0"})
    failure = failed(task, Stage.INDEX, 0, 0, START, message="bad \0 byte")
    await store.fold([plan, extracted(task, 0, 1, 1, START), model, failure])
    row = await read(tasks, task)
    assert (row.status, row.pages) == ("failed", 1)
    assert row.error_message is not None
    assert row.error_message.startswith("bad ")


async def test_a_large_batch_of_many_tasks_is_one_transaction(tasks: Tasks, store: TaskStore, pool: Pool) -> None:
    many = await insert(tasks, 30)
    unknown = new_task()
    events = [event for task in [*many, unknown] for event in log_of(task, SMALL)]
    folded = await store.fold(events)
    assert {row.task_id for row in folded.ended} == {task.task_id for task in many}
    assert (await durations(pool, "task"))["document_process/completed"].total == 30
    assert await tasks.get("owner", uuid4()) is None


async def test_events_that_the_database_could_not_take_become_dead_letters_and_stop_nothing(
    lab: KafkaLab, tasks: Tasks, store: TaskStore, publisher: Publisher
) -> None:
    (task,) = await insert(tasks)
    await lab.catch_up(TASK_EVENTS)
    dead_before = await lab.ends(TASK_EVENTS.dead_letters)
    failure = failed(task, Stage.PARSE, 0, 0, START).model_dump(mode="json")
    poison = [{**failure, "failed_at": "2026-03-04T05:06:07"}, {**failure, "shard": 2**31}, {**failure, "part": -1}]
    values = [json.dumps(event).encode() for event in poison]
    log = [event.model_dump_json().encode() for event in log_of(task, [(1, 1)])]
    for value in [values[0], *log, *values[1:], b"\xff"]:
        await lab.send(TASK_EVENTS.name, value, key=str(task.task_id).encode())

    async def completed() -> None:
        assert (await read(tasks, task)).status == "completed"

    async with lab.consuming(TASK_EVENTS, EventFolder(store, publisher), max_records=2):
        await eventually(completed)
        dead = await lab.read(TASK_EVENTS.dead_letters, 4, since=dead_before)
    assert [record.value for record in dead] == [*values, b"\xff"]
