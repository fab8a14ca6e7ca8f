import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.tasks import Tasks
from services.tracker import fold
from services.tracker.events import EventFolder
from services.tracker.fold import Unit
from services.tracker.store import Folded, TaskStore
from shared.database.durations import Durations, read_durations
from shared.database.pool import Pool, acquire, open_pool
from shared.events import PartEmbedded, Stage, Step, TaskEvent, UnitRetryScheduled
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
    current,
    embedded,
    extracted,
    failed,
    log_of,
    new_task,
    planned,
    retried,
)

SMALL = ((2, 2), (1, 0), (3, 1))
"""Shards of pages and parts; the second one has no text."""

OWN = {"task_id", "document_id"}
"""What differs between two tasks of the same content."""

BY_BATCHES = {"version", "updated_at"}
"""What depends on how events come in batches."""

examples = settings(
    max_examples=50,
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


async def content(tasks: Tasks, task: TaskRow) -> dict[str, object]:
    row = asdict(await current(tasks, task))
    return {name: value for name, value in row.items() if name not in OWN | BY_BATCHES}


async def durations(pool: Pool, series: str) -> dict[str, Durations]:
    async with acquire(pool) as connection:
        return await read_durations(connection, series)


def unit_of(event: TaskEvent) -> Unit:
    assert not isinstance(event, UnitRetryScheduled)
    return fold.unit_of(event)


def identity(unit: Unit) -> tuple[Step, int, int]:
    return unit.step, unit.shard, unit.part


def follows(unit: Unit, broken: Unit) -> bool:
    """Tell whether a unit cannot be done before another one, or is that one."""
    steps = [*Step]
    if steps.index(unit.step) < steps.index(broken.step) or unit.shard != broken.shard:
        return False
    return broken.step == Step.PARSE or unit.part == broken.part


def failures(units: Sequence[Unit], task: TaskRow, run: int = 0) -> list[TaskEvent]:
    """Let units fail, every second one at the same time as the one before."""
    return [
        failed(task, u.step.stage, u.shard, u.part, START + (n // 2) * SECOND, f"failure {n}", step=u.step, run=run)
        for n, u in enumerate(units)
    ]


def retries(units: Sequence[Unit], task: TaskRow, run: int = 0) -> list[TaskEvent]:
    """Let units fail for passing reasons: the first one once, the second one twice and so on, all due at the end."""
    return [
        retried(task, u.step.stage, u.shard, u.part, START + n * SECOND, step=u.step, run=run, attempt=attempt)
        for n, u in enumerate(units)
        for attempt in range(1, n + 2)
    ]


async def fold_shuffled(store: TaskStore, events: Sequence[TaskEvent], data: st.DataObject) -> None:
    """Fold events in any order, some of them twice, in up to ten batches."""
    duplicates = data.draw(st.lists(st.sampled_from(events), max_size=len(events)))
    shuffled = data.draw(st.permutations([*events, *duplicates]))
    size = data.draw(st.integers(-(-len(shuffled) // 10), len(shuffled)))
    for start in range(0, len(shuffled), size):
        await store.fold(shuffled[start : start + size])


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
    row = await current(tasks, task)
    assert (row.status, row.pages, row.shards, row.parts, row.chunks, row.characters) == ("completed", 6, 3, 3, 9, 300)
    assert (row.parse_done, row.embed_done, row.index_done) == (3, 3, 3)
    assert (row.parse_weight, row.embed_weight, row.index_weight) == (6000, 6000, 6000)
    assert (row.pages_without_text, row.tokens, row.model, row.dimension) == (1, 300, "tiny", 4)
    assert (row.started_at, row.completed_at) == (START, START + len(log) * SECOND)
    assert row.metadata == {"Title": "X"}
    assert row.version == 1 + len(log)


async def test_the_answer_is_what_the_database_holds(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    folded = await store.fold(log_of(task, SMALL))
    assert list(folded.tasks) == list(folded.ended) == [await current(tasks, task)]


shards_of_any_kind = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4)


@examples
@given(shards=shards_of_any_kind, data=st.data())
async def test_any_order_with_duplicates_in_any_batches_ends_in_the_same_row(
    tasks: Tasks, store: TaskStore, shards: list[Shard], data: st.DataObject
) -> None:
    ordered, shuffled = await insert(tasks, 2)
    units = st.integers(1, len(log_of(ordered, shards)) - 1)
    broken, waiting, slow = (data.draw(st.lists(units, max_size=3, unique=True)) for _ in range(3))

    def events(task: TaskRow) -> list[TaskEvent]:
        log = log_of(task, shards)
        [stuck, lost, late] = [[unit_of(log[n]) for n in chosen] for chosen in (broken, waiting, slow)]
        left = [event for event in log if not any(follows(unit_of(event), unit) for unit in (*stuck, *lost))]
        return [*left, *failures(stuck, task), *retries([*dict.fromkeys((*lost, *late))], task)]

    await store.fold(events(ordered))
    await fold_shuffled(store, events(shuffled), data)
    assert await content(tasks, shuffled) == await content(tasks, ordered)
    assert (await current(tasks, ordered)).status == ("failed" if broken else "running" if waiting else "completed")


@examples
@given(shards=shards_of_any_kind, data=st.data())
async def test_after_a_replay_any_order_of_what_is_new_and_what_is_old_ends_in_the_same_row(
    tasks: Tasks, store: TaskStore, shards: list[Shard], data: st.DataObject
) -> None:
    ordered, shuffled = await insert(tasks, 2)
    units = st.integers(1, len(log_of(ordered, shards)) - 1)
    broken = data.draw(st.lists(units, min_size=1, max_size=3, unique=True))
    ends = data.draw(st.tuples(*(st.sampled_from(["done", "failed", "waiting", "silent"]) for _ in broken)))
    for task in (ordered, shuffled):
        log = log_of(task, shards)
        chosen = [unit_of(log[n]) for n in broken]
        old = [event for event in log if not any(follows(unit_of(event), unit) for unit in chosen)]
        old += [*retries(chosen, task), *failures(chosen, task)]
        await store.fold(old)
        await tasks.reopen(task.owner, task.task_id, START)
        failed_again, stuck = (
            [unit for unit, end in zip(chosen, ends, strict=True) if end in those]
            for those in ({"failed"}, {"failed", "waiting", "silent"})
        )
        tried = [unit for unit, end in zip(chosen, ends, strict=True) if end != "silent"]
        done = [event for event in log if not any(follows(unit_of(event), unit) for unit in stuck)]
        new = [*retries(tried, task, run=1), *failures(failed_again, task, run=1), *done]
        if task is ordered:
            await store.fold([*old, *new])
        else:
            await fold_shuffled(store, [*new, *old], data)
    assert await content(tasks, shuffled) == await content(tasks, ordered)
    row = await current(tasks, ordered)
    assert row.status == ("failed" if "failed" in ends else "completed" if {*ends} == {"done"} else "running")
    ended = {identity(unit_of(event)) for event in new if not isinstance(event, UnitRetryScheduled)}
    pending = {identity(unit) for unit in tried} - ended if row.status == "running" else ()
    assert (row.next_retry_at is not None) == bool(pending)


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
    assert await store.fold(log_of(gone, SMALL)) == Folded([], [], [], [])
    (task,) = await insert(tasks)
    folded = await store.fold([*log_of(gone, SMALL), *log_of(task, SMALL)])
    assert [row.task_id for row in folded.tasks] == [task.task_id]
    async with acquire(pool) as connection:
        assert await connection.fetchval("SELECT count(DISTINCT task_id) FROM task_units") == 1
    assert (await durations(pool, "stage"))[Stage.PARSE].total == 3


async def test_no_events_at_all_are_fine(store: TaskStore) -> None:
    assert await store.fold([]) == Folded([], [], [], [])


async def test_duplicates_change_nothing_but_their_task_is_told_again(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    log = log_of(task, SMALL)
    await store.fold(log)
    before = await current(tasks, task)
    again = await store.fold([log[2], log[2], log[0]])
    assert list(again.tasks) == [before]
    assert list(again.ended) == []
    assert await current(tasks, task) == before


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
    row = await current(tasks, task)
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
    row = await current(tasks, task)
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
    row = await current(tasks, task)
    assert (row.embed_done, row.embed_weight, row.tokens) == (1, 1000, 100)
    assert row.status == ("running" if together else "failed")
    assert (await durations(pool, "stage"))[Stage.EMBED].total == 1


async def test_a_failure_after_the_same_unit_was_done_is_ignored(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    await store.fold(log_of(task, SMALL))
    before = await current(tasks, task)
    await store.fold([failed(task, Stage.INDEX, 0, 1, START)])
    assert await current(tasks, task) == before
    assert before.status == "completed"


@pytest.mark.parametrize("first", ["earlier", "later"])
async def test_of_two_owners_whose_same_unit_fails_the_earlier_failure_counts(
    tasks: Tasks, store: TaskStore, first: str
) -> None:
    (task,) = await insert(tasks)
    both = [failed(task, Stage.PARSE, 0, 0, START + n * SECOND, message=f"failure {n}") for n in (1, 2)]
    for event in both if first == "earlier" else reversed(both):
        await store.fold([event])
    row = await current(tasks, task)
    assert (row.failed_at, row.completed_at, row.error_message) == (START + SECOND, START + SECOND, "failure 1")


async def test_a_retry_is_told_until_its_part_is_done(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    start, done = log_of(task, [(4, 9)])[:2], embedded(task, 0, 2, 1, START)
    await store.fold([*start, retried(task, Stage.EMBED, 0, 2, START, parts=9)])
    row = await current(tasks, task)
    assert row.message(START) == "embedding part 3/9 failed: rate limited; trying again in 60 s (2 of 4)"
    assert (row.status, row.retry_count, row.next_retry_at) == ("running", 1, START + 60 * SECOND)
    await store.fold([done])
    row = await current(tasks, task)
    assert row.message(START) == "parsed 4 of 4 pages, embedded 1 and indexed 0 of 9 parts"
    assert (row.retry_count, row.next_retry_at) == (1, None)


async def test_of_several_retries_the_earliest_that_is_pending_is_told(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    first, second = (retried(task, Stage.EMBED, 0, part, START + part * SECOND) for part in range(2))
    again = retried(task, Stage.EMBED, 0, 0, START + 60 * SECOND, attempt=2)
    told = []
    for event in (first, second, again, embedded(task, 0, 1, 1, START)):
        await store.fold([event])
        told.append((await current(tasks, task)).next_retry_at)
    assert told == [START + n * SECOND for n in (60, 60, 61, 120)]
    assert (await current(tasks, task)).retry_count == 3


async def test_a_retry_that_is_reported_twice_is_counted_once(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    event = retried(task, Stage.PARSE, 0, 0, START, step=Step.PLAN)
    await store.fold([event, event])
    await store.fold([event])
    row = await current(tasks, task)
    assert (row.retry_count, row.version) == (1, 2)
    assert row.message(START).startswith("reading the document failed: rate limited; trying again in 60 s")


@pytest.mark.parametrize("late", [False, True])
async def test_a_task_that_failed_tells_of_no_retry(tasks: Tasks, store: TaskStore, *, late: bool) -> None:
    (task,) = await insert(tasks)
    events = [retried(task, Stage.EMBED, 0, 1, START), failed(task, Stage.EMBED, 0, 0, START + SECOND)]
    for event in reversed(events) if late else events:
        await store.fold([event])
    row = await current(tasks, task)
    assert (row.status, row.retry_count, row.next_retry_at, row.retry_message) == ("failed", 1, None, None)


async def test_a_retry_of_an_earlier_run_is_none_that_pends_after_a_replay(tasks: Tasks, store: TaskStore) -> None:
    (task,) = await insert(tasks)
    await store.fold([retried(task, Stage.EMBED, 0, 0, START), failed(task, Stage.EMBED, 0, 0, START)])
    await tasks.reopen(task.owner, task.task_id, START)
    await store.fold([embedded(task, 0, 1, 1, START)])
    row = await current(tasks, task)
    assert (row.status, row.retry_count, row.next_retry_at) == ("running", 1, None)
    await store.fold([retried(task, Stage.EMBED, 0, 0, START + SECOND, run=1)])
    row = await current(tasks, task)
    assert (row.retry_count, row.next_retry_at) == (2, START + 61 * SECOND)


async def test_work_that_is_sent_on_again_is_noted_for_the_watchdog_and_for_nobody_else(
    tasks: Tasks, pool: Pool
) -> None:
    """Such as chunks that are made once more from the PDF: the shard's report is no news, but the chunks may wait."""
    (task,) = await insert(tasks)
    plan, shard, *_ = log_of(task, SMALL)
    await tasks.mark_dispatched(task, START)
    await TaskStore(pool, clock=lambda: START).fold([plan, shard])
    before = await current(tasks, task)
    await TaskStore(pool, clock=lambda: START + SECOND).fold([shard])
    assert await current(tasks, task) == replace(before, dispatched_at=START + SECOND)


async def test_a_task_supersedes_only_where_its_document_has_another_task(tasks: Tasks, store: TaskStore) -> None:
    older, stranger = new_task(), new_task()
    newer = new_task(at=START + SECOND, document=older.document_id)
    for task in (older, newer, stranger):
        await tasks.insert(task)
    assert list((await store.fold(log_of(stranger, [(1, 1)]))).superseding) == []
    await store.fold(log_of(older, [(1, 1)]))
    for events in (log_of(newer, [(1, 1)]), log_of(newer, [(1, 1)])[:1]):  # a duplicate tells it again
        assert list((await store.fold(events)).superseding) == [await current(tasks, newer)]


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
    assert list(late.superseding) == [await current(tasks, newer)]


async def test_where_an_older_task_fails_after_a_newer_one_is_complete_the_newer_one_supersedes_it(
    tasks: Tasks, store: TaskStore
) -> None:
    older = new_task()
    newer = new_task(at=START + SECOND, document=older.document_id)
    for task in (older, newer):
        await tasks.insert(task)
    await store.fold(log_of(newer, [(1, 1)]))
    log = log_of(older, [(1, 2)])
    late = await store.fold([*log[:-1], failed(older, Stage.INDEX, 0, 1, START)])
    assert [row.status for row in late.ended] == ["failed"]
    assert list(late.superseding) == [await current(tasks, newer)]


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
    await tasks.mark_dispatched(task, START + SECOND)
    await store.fold(log_of(task, SMALL))
    row = await current(tasks, task)
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
    row = await current(tasks, task)
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
        assert (await current(tasks, task)).status == "completed"

    async with lab.consuming(TASK_EVENTS, EventFolder(store, publisher), max_records=2):
        await eventually(completed)
        dead = await lab.read(TASK_EVENTS.dead_letters, 4, since=dead_before)
    assert [record.value for record in dead] == [*values, b"\xff"]
