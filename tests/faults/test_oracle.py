"""The oracle sees what is wrong: each law is broken in evidence that was right."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.events import PartIndexed
from shared.tasks import TaskStatus
from tests.faults import laws
from tests.faults.documents import corrupt, good
from tests.faults.evidence import Evidence, gather
from tests.faults.trial import Trial

Tamper = Callable[[Evidence, UUID, UUID], Evidence]


def _with(found: Evidence, name: str, key: object, value: Any) -> Evidence:
    changes: dict[str, Any] = {name: {**getattr(found, name), key: value}}
    return replace(found, **changes)


def _row(found: Evidence, task: UUID, **changes: Any) -> Evidence:
    return _with(found, "tasks", task, replace(found.tasks[task], **changes))


TAMPERED: dict[str, tuple[laws.Law, Tamper]] = {
    "a task is lost": (
        laws.ends_as_it_should,
        lambda e, done, _: replace(e, tasks={k: v for k, v in e.tasks.items() if k != done}),
    ),
    "a task ends otherwise": (
        laws.ends_as_it_should,
        lambda e, done, _: _row(e, done, status=TaskStatus.FAILED, error_code="deadline_exceeded"),
    ),
    "a task fails otherwise": (
        laws.ends_as_it_should,
        lambda e, _, failed: _row(e, failed, error_code="deadline_exceeded"),
    ),
    "a task nobody sent": (
        laws.nobody_else_is_there,
        lambda e, done, _: _with(e, "tasks", uuid4(), e.tasks[done]),
    ),
    "a task goes on": (laws.all_are_over, lambda e, done, _: _row(e, done, status=TaskStatus.RUNNING)),
    "a task in the outbox": (laws.all_are_over, lambda e, done, _: _row(e, done, dispatched_at=None)),
    "a chunk is missing": (
        laws.chunks_are_those_of_the_newest,
        lambda e, done, _: _with(e, "chunks", done, e.chunks[done][1:]),
    ),
    "a chunk is there twice": (
        laws.chunks_are_those_of_the_newest,
        lambda e, done, _: _with(e, "chunks", done, [*e.chunks[done], e.chunks[done][0]]),
    ),
    "a chunk of a failed task": (
        laws.chunks_are_those_of_the_newest,
        lambda e, _, failed: _with(e, "chunks", failed, [uuid4()]),
    ),
    "chunks of a canceled task": (
        laws.chunks_are_those_of_the_newest,
        lambda e, done, _: _row(e, done, status=TaskStatus.CANCELED),
    ),
    "chunks of no task": (
        laws.chunks_are_those_of_the_newest,
        lambda e, *_: _with(e, "chunks", uuid4(), [uuid4()]),
    ),
    "a replaced document that is still there": (
        laws.chunks_are_those_of_the_newest,
        lambda e, done, _: _with(
            e, "tasks", uuid4(), replace(e.tasks[done], created_at=e.tasks[done].created_at + timedelta(seconds=1))
        ),
    ),
    "a blob of no task": (
        laws.blobs_and_rows_belong_together,
        lambda e, *_: replace(e, blobs=e.blobs | {"file:///stray.pdf"}),
    ),
    "a task without its blob": (
        laws.blobs_and_rows_belong_together,
        lambda e, done, _: replace(e, blobs=e.blobs - {e.tasks[done].blob_url}),
    ),
    "units that nobody reported": (
        laws.units_and_events_tell_the_same,
        lambda e, done, _: _with(e, "events", done, e.events[done][1:]),
    ),
    "a report that was not folded": (
        laws.units_and_events_tell_the_same,
        lambda e, done, _: _with(e, "units", done, e.units[done][1:]),
    ),
    "a failure that nobody reported": (
        laws.units_and_events_tell_the_same,
        lambda e, _, failed: _with(e, "events", failed, []),
    ),
    "a unit counted twice": (
        laws.counters_are_the_sums_of_units,
        lambda e, done, _: _row(e, done, index_done=e.tasks[done].index_done + 1),
    ),
    "chunks counted twice": (
        laws.counters_are_the_sums_of_units,
        lambda e, done, _: _row(e, done, chunks=2 * e.tasks[done].chunks),
    ),
    "another state is shown": (
        laws.what_is_shown_is_the_row,
        lambda e, done, _: _with(e, "shown", done, {**e.shown[done], "progress": 99}),
    ),
    "a dead letter is gone": (laws.failures_have_their_dead_letters, lambda e, *_: replace(e, dead_letters={})),
}


async def test_each_law_is_seen_to_be_broken(trial: Trial, subtests: pytest.Subtests) -> None:
    copy = trial.choice.getrandbits(32)
    done, failed = [upload.task_id for upload in await trial.load.upload([good(3, copy), corrupt(copy)])]
    assert done is not None
    assert failed is not None
    await trial.verdict("nothing at all", faults=0)
    found = await gather(trial.where, trial.pool)
    for what, (law, tamper) in TAMPERED.items():
        with subtests.test(what):
            assert list(law(tamper(found, done, failed), trial.ledger))
    assert {law for law, _ in TAMPERED.values()} == set(laws.LAWS)
    twice = _with(found, "events", done, [*found.events[done], *found.events[done]])
    assert laws.duplicates(found, {done}) == 0
    assert laws.duplicates(twice, {done}) == len(found.events[done])
    assert any(isinstance(event, PartIndexed) for event in found.events[done])
