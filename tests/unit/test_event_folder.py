from collections.abc import Sequence
from uuid import UUID

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from services.tracker.events import EventFolder
from services.tracker.store import Folded, TaskStore
from shared.breaker import MIN_RECORDS
from shared.broker import Record
from shared.errors import DependencyUnavailableError
from shared.events import DocumentCompleted, Event, TaskCanceled, TaskEvent, TaskUpdated
from shared.kafka import Outgoing
from shared.tasks import TaskRow, update_of
from tests.support.builders import (
    DOCUMENT,
    NOON,
    OTHER_TASK,
    OWNER,
    TASK,
    RecordingPublisher,
    part_indexed,
    planned,
    record,
    row,
    shard_extracted,
    unit_failed,
)


class Outcome(TaskStore):
    """A store that keeps what it is given and answers what it is told; the real one has tests with PostgreSQL."""

    def __init__(self) -> None:
        self.events: list[TaskEvent] = []
        self.folded = Folded([], [], [], [])
        self.error: Exception | None = None

    @override
    async def fold(self, events: Sequence[TaskEvent]) -> Folded:
        if self.error is not None:
            raise self.error
        self.events.extend(events)
        return self.folded


@pytest.fixture
def store() -> Outcome:
    return Outcome()


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def folder(store: Outcome, publisher: RecordingPublisher) -> EventFolder:
    return EventFolder(store, publisher, clock=lambda: NOON)


def event_record(value: Event | bytes | None, key: bytes | None = str(TASK).encode()) -> Record:
    return record(value, topic="task.events", key=key, partition=3, offset=14)


def updates(publisher: RecordingPublisher) -> dict[UUID, TaskUpdated]:
    return {
        UUID((each.key or b"").decode()): TaskUpdated.model_validate_json(each.value or b"")
        for each in publisher.on("task.updates")
    }


async def test_the_events_of_a_batch_are_folded_together_in_their_order(folder: EventFolder, store: Outcome) -> None:
    events = [planned(), shard_extracted(), unit_failed(task_id=OTHER_TASK)]
    await folder(tuple(map(event_record, events)))
    assert store.events == events


async def test_watchers_are_told_the_new_state_of_every_task_of_the_batch(
    folder: EventFolder, store: Outcome, publisher: RecordingPublisher
) -> None:
    running, done = row(status="running", version=3), row(task_id=OTHER_TASK, status="completed", pages=4, version=9)
    store.folded = Folded([running, done], [], [done], [])
    await folder((event_record(planned()),))
    assert updates(publisher) == {TASK: update_of(running), OTHER_TASK: update_of(done)}
    assert publisher.on("documents.completed") == publisher.on("task.control") == []


async def test_a_newer_version_of_a_document_retires_the_older_ones(
    folder: EventFolder, store: Outcome, publisher: RecordingPublisher
) -> None:
    done = row(status="completed", pages=4)
    store.folded = Folded([done], [done], [done], [])
    await folder((event_record(planned()),))
    [completed] = publisher.on("documents.completed")
    assert completed.key == str(DOCUMENT).encode()
    assert DocumentCompleted.model_validate_json(completed.value or b"") == DocumentCompleted(
        task_id=TASK, document_id=DOCUMENT, owner=OWNER, submitted_at=NOON
    )


async def test_a_part_of_a_canceled_task_that_was_indexed_late_is_removed_again(
    folder: EventFolder, store: Outcome, publisher: RecordingPublisher
) -> None:
    gone = row(status="canceled")
    store.folded = Folded([gone], [], [], [gone])
    await folder((event_record(part_indexed()),))
    [canceled] = publisher.on("task.control")
    assert canceled.key == str(TASK).encode()
    assert TaskCanceled.model_validate_json(canceled.value or b"") == TaskCanceled(
        task_id=TASK, document_id=DOCUMENT, owner=OWNER
    )


BAD = {
    "broken JSON": b"{",
    "not UTF-8": b'"\xff"',
    "no kind": b"{}",
    "an unknown kind": b'{"kind": "task_exploded"}',
    "another schema version": planned().model_copy(update={"schema_version": 2}).model_dump_json().encode(),
    "empty": b"",
    "a tombstone": None,
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_an_event_that_cannot_be_read_is_a_dead_letter_and_the_others_are_folded(
    folder: EventFolder, store: Outcome, publisher: RecordingPublisher, value: bytes | None
) -> None:
    with capture_logs() as lines:
        await folder((event_record(planned()), event_record(value, key=b"\xff"), event_record(shard_extracted())))
    assert store.events == [planned(), shard_extracted()]
    [dead] = publisher.on("task.events.dlq")
    assert (dead.key, dead.value) == (b"\xff", value)
    headers = dict(dead.headers)
    assert (headers["error-code"], headers["origin-offset"]) == (b"record_undecodable", b"14")
    assert [(line["event"], line["partition"], line["offset"]) for line in lines] == [("event dead-lettered", 3, 14)]


async def test_without_a_database_the_batch_escapes_and_nothing_is_published(
    folder: EventFolder, store: Outcome, publisher: RecordingPublisher
) -> None:
    store.error = DependencyUnavailableError("the database does not answer")
    with pytest.raises(DependencyUnavailableError):
        await folder((event_record(b"?"), event_record(planned())))
    assert publisher.published == []


async def test_events_that_nobody_can_read_pause_the_tracker_but_those_of_a_batch_that_comes_again_do_not_count(
    folder: EventFolder, store: Outcome
) -> None:
    unreadable = tuple(event_record(b"?") for _ in range(MIN_RECORDS))
    store.error = DependencyUnavailableError("the database does not answer")
    with pytest.raises(DependencyUnavailableError), folder.breaker.batch():
        await folder(unreadable)
    assert folder.breaker.problem() is None
    store.error = None
    with folder.breaker.batch():
        await folder(tuple(event_record(planned()) for _ in range(MIN_RECORDS)))
    with folder.breaker.batch():
        await folder(unreadable)
    assert folder.breaker.problem() is None, "half of them are fine"
    with folder.breaker.batch():
        await folder((event_record(b"?"),))
    assert "21 of 41 records became dead letters" in str(folder.breaker.problem())


async def test_without_a_broker_the_batch_escapes(folder: EventFolder, publisher: RecordingPublisher) -> None:
    publisher.error = ConnectionError("no broker")
    with pytest.raises(ConnectionError):
        await folder((event_record(planned()),))


@pytest.mark.parametrize(
    ("task", "code"),
    [(row(status="completed", pages=4), None), (row(status="failed", error_code="pdf_encrypted"), "pdf_encrypted")],
)
async def test_the_end_of_a_task_is_logged(
    folder: EventFolder, store: Outcome, task: TaskRow, code: str | None
) -> None:
    store.folded = Folded([task], [], [task], [])
    with capture_logs() as lines:
        await folder((event_record(planned()),))
    [line] = lines
    assert (line["event"], line["task_id"], line["status"]) == ("task over", str(TASK), task.status)
    assert line["error_code"] == code


async def test_a_batch_of_nothing_readable_publishes_its_dead_letters_only(
    folder: EventFolder, store: Outcome, publisher: RecordingPublisher
) -> None:
    await folder((event_record(b"?"),))
    topics: list[Outgoing] = publisher.published
    assert [each.topic for each in topics] == ["task.events.dlq"]
    assert store.events == []
