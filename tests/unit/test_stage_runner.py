import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.structs import RecordMetadata
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from typing_extensions import override

from shared.breaker import MIN_RECORDS
from shared.broker import Record
from shared.cancellations import Cancellations
from shared.deadline import UNIT_TIMEOUT
from shared.errors import (
    EmbeddingRejectedError,
    EncryptedPdfError,
    RateLimitedError,
    TransientError,
)
from shared.events import (
    TASK_EVENT,
    ChunksExtracted,
    DeadLetter,
    DocumentCompleted,
    DocumentSubmitted,
    Event,
    PagesRequested,
    Stage,
    Step,
    UnitFailed,
    UnitRetryScheduled,
)
from shared.kafka import Outgoing
from shared.settings import RETRY_DELAYS
from shared.stage import Handle, Runtime, StageRunner
from shared.topics import CHUNKS_EXTRACTED, DOCUMENTS_COMPLETED, DOCUMENTS_SUBMITTED, PAGES_REQUESTED, Topic
from tests.support.builders import (
    NOON,
    OTHER_TASK,
    TASK,
    RecordingPublisher,
    extracted,
    pages_requested,
    patience,
    record,
    submitted,
)

DEAD_LETTERS = CHUNKS_EXTRACTED.dead_letters
FIRST_RETRY = CHUNKS_EXTRACTED.retry(RETRY_DELAYS[0])


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


async def done(event: Event) -> list[Outgoing]:
    """Do the work of any event."""
    return [Outgoing("out", str(event.task_id).encode(), b"done")]


def raising(error: BaseException) -> Callable[[Event], Any]:
    async def fail(_: Event) -> list[Outgoing]:
        raise error

    return fail


def runner(
    publisher: RecordingPublisher,
    handle: Handle[Any] = done,
    *,
    topic: Topic = CHUNKS_EXTRACTED,
    event: type[Event] = ChunksExtracted,
    canceled: Cancellations | None = None,
    undo: Handle[Any] | None = None,
    limit: timedelta = UNIT_TIMEOUT,
) -> StageRunner[Any]:
    runtime = Runtime(publisher, canceled or Cancellations(), unit_timeout=limit, clock=lambda: NOON)
    return StageRunner(topic, event, handle, runtime, undo=undo)


def headers_of(outgoing: Outgoing) -> dict[str, bytes]:
    return dict(outgoing.headers)


def reports(publisher: RecordingPublisher) -> list[Any]:
    return [TASK_EVENT.validate_json(each.value or b"") for each in publisher.on("task.events")]


def failures(publisher: RecordingPublisher) -> list[UnitFailed]:
    return [report for report in reports(publisher) if isinstance(report, UnitFailed)]


def retries(publisher: RecordingPublisher) -> list[UnitRetryScheduled]:
    return [report for report in reports(publisher) if isinstance(report, UnitRetryScheduled)]


async def test_the_outputs_of_a_good_record_are_published(publisher: RecordingPublisher) -> None:
    await runner(publisher)((record(extracted()),))
    assert publisher.published == [Outgoing("out", str(TASK).encode(), b"done")]


async def test_a_handler_gets_the_event_that_the_record_holds(publisher: RecordingPublisher) -> None:
    got: list[ChunksExtracted] = []

    async def keep(event: ChunksExtracted) -> list[Outgoing]:
        got.append(event)
        return []

    await runner(publisher, keep)((record(extracted(["é", "値"])),))
    assert got == [extracted(["é", "値"])]
    assert publisher.published == []


async def test_the_records_of_a_batch_run_at_the_same_time(publisher: RecordingPublisher) -> None:
    all_there = asyncio.Barrier(3)

    async def meet(event: Event) -> list[Outgoing]:
        await all_there.wait()
        return await done(event)

    async with patience():
        await runner(publisher, meet)(tuple(record(extracted(part=part)) for part in range(3)))
    assert len(publisher.on("out")) == 3


async def test_an_empty_batch_is_no_work(publisher: RecordingPublisher) -> None:
    await runner(publisher)(())
    assert publisher.published == []


@pytest.mark.parametrize("error", [TransientError("away"), OSError("disk"), ValueError("a bug"), TimeoutError()])
async def test_what_may_pass_waits_in_the_retry_topic_as_the_same_record(
    publisher: RecordingPublisher, error: Exception
) -> None:
    source = record(extracted(), key=b"any \xff key", headers=[("traceparent", b"00-ab"), ("odd", b"\xff\xfe")])
    await runner(publisher, raising(error))((source,))
    [retried] = publisher.on(FIRST_RETRY)
    assert (retried.key, retried.value) == (source.key, source.value)
    assert list(retried.headers[:2]) == source.headers
    headers = headers_of(retried)
    assert headers["due-at"] == (NOON + RETRY_DELAYS[0]).isoformat().encode()
    assert (headers["attempt"], headers["error-type"]) == (b"1", type(error).__name__.encode())


async def test_attempts_count_through_all_delays_up_to_the_dead_letters(publisher: RecordingPublisher) -> None:
    run = runner(publisher, raising(TransientError("still away")))
    current = record(extracted(shard=2, part=3))
    for attempt in range(2, 6):
        await run((current,))
        last = [each for each in publisher.published if each.topic != "task.events"][-1]
        headers = [*((name, value) for name, value in last.headers if name != "attempt"), ("attempt", b"%d" % attempt)]
        current = record(last.value, key=last.key, headers=headers)
    stages = [each.topic.removeprefix("chunks.extracted.") for each in publisher.published]
    told = "task.events"
    assert stages == ["retry.60s", told, "retry.120s", told, "retry.240s", told, "dlq", told]
    [failed] = failures(publisher)
    assert (failed.code, failed.message) == ("temporarily_unavailable", "still away")
    assert (failed.shard, failed.part) == (2, 3)
    assert [(retry.attempt, retry.attempts) for retry in retries(publisher)] == [(1, 4), (2, 4), (3, 4)]
    assert [retry.retry_at - NOON for retry in retries(publisher)] == list(RETRY_DELAYS)


async def test_a_providers_longer_wish_is_honoured(publisher: RecordingPublisher) -> None:
    wish = timedelta(minutes=7)
    await runner(publisher, raising(RateLimitedError("slow down", retry_after=wish)))((record(extracted()),))
    [retried] = publisher.on(FIRST_RETRY)
    assert headers_of(retried)["due-at"] == (NOON + wish).isoformat().encode()
    assert [retry.retry_at for retry in retries(publisher)] == [NOON + wish]


UNITS = pytest.mark.parametrize(
    ("topic", "event", "step", "shard", "part", "parts"),
    [
        (DOCUMENTS_SUBMITTED, submitted(), Step.PLAN, 0, 0, None),
        (PAGES_REQUESTED, pages_requested(shard=4), Step.PARSE, 4, 0, None),
        (PAGES_REQUESTED, pages_requested(shard=4, parts=(7, 9)), Step.PARSE, 4, 0, None),
        (CHUNKS_EXTRACTED, extracted(shard=2, part=3), Step.EMBED, 2, 3, None),
        (CHUNKS_EXTRACTED, extracted(shard=2, part=3, parts=9), Step.EMBED, 2, 3, 9),
    ],
)


@UNITS
async def test_a_retry_is_reported_of_its_unit(
    publisher: RecordingPublisher, topic: Topic, event: Event, step: Step, shard: int, part: int, parts: int | None
) -> None:
    run = runner(publisher, raising(RateLimitedError("slow down")), topic=topic, event=type(event))
    await run((record(event, headers=[("run", b"2")]),))
    assert reports(publisher) == [
        UnitRetryScheduled(
            task_id=TASK,
            stage=step.stage,
            step=step,
            shard=shard,
            part=part,
            run=2,
            code="rate_limited",
            message="slow down",
            failed_at=NOON,
            parts=parts,
            attempt=1,
            attempts=4,
            retry_at=NOON + RETRY_DELAYS[0],
        )
    ]
    assert publisher.on("task.events")[0].key == str(TASK).encode()


@UNITS
async def test_a_permanent_failure_is_a_dead_letter_and_fails_its_unit(
    publisher: RecordingPublisher, topic: Topic, event: Event, step: Step, shard: int, part: int, parts: int | None
) -> None:
    run = runner(publisher, raising(EncryptedPdfError("a password is needed")), topic=topic, event=type(event))
    source = record(event, headers=[("run", b"1")])
    await run((source,))
    [dead] = publisher.on(topic.dead_letters)
    assert (dead.key, dead.value) == (source.key, source.value)
    assert reports(publisher) == [
        UnitFailed(
            task_id=TASK,
            stage=step.stage,
            step=step,
            shard=shard,
            part=part,
            run=1,
            code="pdf_encrypted",
            message="a password is needed",
            failed_at=NOON,
            dead_letter=DeadLetter(topic=topic.dead_letters, partition=0, offset=0),
        )
    ]
    assert publisher.on("task.events")[0].key == str(TASK).encode()


async def test_a_failure_says_where_its_own_dead_letter_lies(publisher: RecordingPublisher) -> None:
    await runner(publisher, raising(EncryptedPdfError("no")))(tuple(record(extracted(part=part)) for part in range(3)))
    for failed in failures(publisher):
        assert failed.dead_letter
        dead = publisher.on(DEAD_LETTERS)[failed.dead_letter.offset]
        assert ChunksExtracted.model_validate_json(dead.value or b"").part == failed.part


async def test_a_dead_letter_whose_place_the_broker_does_not_tell_is_reported_all_the_same() -> None:
    class Forgetful(RecordingPublisher):
        @override
        def _keep(self, record: Outgoing) -> RecordMetadata:
            super()._keep(record)
            return RecordMetadata(record.topic, 0, TopicPartition(record.topic, 0), -1, None, 0, None)

    publisher = Forgetful()
    await runner(publisher, raising(EncryptedPdfError("no")))((record(extracted()),))
    assert [failed.dead_letter for failed in failures(publisher)] == [None]


@pytest.mark.parametrize("error", [TransientError("away"), EncryptedPdfError("never")])
async def test_a_failure_where_records_are_no_units_is_nobodys_to_report(
    publisher: RecordingPublisher, error: Exception
) -> None:
    event = DocumentCompleted(task_id=TASK, document_id=TASK, owner="alice", submitted_at=NOON)
    await runner(publisher, raising(error), topic=DOCUMENTS_COMPLETED, event=DocumentCompleted)((record(event),))
    [routed] = publisher.published
    assert routed.topic in (DOCUMENTS_COMPLETED.retry(RETRY_DELAYS[0]), DOCUMENTS_COMPLETED.dead_letters)


@pytest.mark.parametrize(
    ("header", "run"), [(b"3", 3), (b"", 0), (b"-1", 0), (b"\xff", 0), (b"9" * 5000, 0), (None, 0)]
)
async def test_the_run_stays_on_the_record_and_senseless_ones_count_as_the_first(
    publisher: RecordingPublisher, header: bytes, run: int
) -> None:
    source = record(extracted(), headers=[("run", header)])
    await runner(publisher, raising(TransientError("away")))((source,))
    await runner(publisher, raising(EncryptedPdfError("never")))((source,))
    assert [report.run for report in reports(publisher)] == [run, run]
    for topic in (FIRST_RETRY, DEAD_LETTERS):
        assert headers_of(publisher.on(topic)[0])["run"] == header


async def test_what_comes_of_a_replayed_record_belongs_to_the_same_run(publisher: RecordingPublisher) -> None:
    await runner(publisher)((record(extracted(), headers=[("run", b"2")]),))
    assert publisher.published == [Outgoing("out", str(TASK).encode(), b"done", [("run", b"2")])]


@pytest.mark.parametrize("text", ["half \ud800 of a pair", "a NUL \0", "x" * 2_000_000, ""])
async def test_a_failure_whose_text_is_odd_is_reported_all_the_same(publisher: RecordingPublisher, text: str) -> None:
    await runner(publisher, raising(EmbeddingRejectedError(text)))((record(extracted()),))
    [failed] = failures(publisher)
    assert 0 < len(failed.message) <= 2000
    assert "\0" not in failed.message
    [dead] = publisher.on(DEAD_LETTERS)
    assert sum(len(value) for _, value in dead.headers) < 50_000


def _json(**changes: object) -> bytes:
    return extracted().model_copy(update=changes).model_dump_json(warnings=False).encode()


UNDECODABLE = {
    "broken JSON": b'{"task_id": ',
    "not UTF-8": b'"\xff"',
    "empty": b"",
    "a list": b"[]",
    "another schema version": _json(schema_version=2),
    "a negative shard": _json(shard=-1),
    "an id that is none": _json(task_id="x"),
    "a missing field": b'{"schema_version": 1, "task_id": "%s"}' % str(TASK).encode(),
}


@pytest.mark.parametrize("value", [*UNDECODABLE.values(), None], ids=[*UNDECODABLE, "a tombstone"])
async def test_a_record_that_is_no_event_is_a_dead_letter_and_fails_the_task_of_its_key(
    publisher: RecordingPublisher, value: bytes | None
) -> None:
    await runner(publisher)((record(value, key=f"{TASK}:1:2".encode()),))
    [dead] = publisher.on(DEAD_LETTERS)
    assert dead.value == value
    assert headers_of(dead)["error-code"] == b"record_undecodable"
    [failed] = failures(publisher)
    assert (failed.task_id, failed.stage, failed.code) == (TASK, Stage.EMBED, "record_undecodable")
    assert (failed.step, failed.shard, failed.part) == (Step.EMBED, 1, 2)
    assert failed.message.startswith("no ChunksExtracted: ")
    assert publisher.on("out") == []


@pytest.mark.parametrize(
    ("topic", "key", "unit"),
    [
        (DOCUMENTS_SUBMITTED, f"{TASK}", (Step.PLAN, 0, 0)),
        (PAGES_REQUESTED, f"{TASK}:7", (Step.PARSE, 7, 0)),
        (CHUNKS_EXTRACTED, f"{TASK}:7:8", (Step.EMBED, 7, 8)),
    ],
)
async def test_an_undecodable_record_fails_exactly_the_unit_that_its_key_names(
    publisher: RecordingPublisher, topic: Topic, key: str, unit: tuple[Step, int, int]
) -> None:
    await runner(publisher, topic=topic)((record(b"?", key=key.encode()),))
    assert [(failed.step, failed.shard, failed.part) for failed in failures(publisher)] == [unit]


async def test_the_reason_names_the_field_that_is_wrong(publisher: RecordingPublisher) -> None:
    await runner(publisher)((record(_json(shard=-1)),))
    assert failures(publisher)[0].message == "no ChunksExtracted: shard: Input should be greater than or equal to 0"


SENSELESS = [f"{TASK}:{rest}".encode() for rest in ("x", "-1", "1:2:3", 2**31)]


@pytest.mark.parametrize("key", [None, b"", b"no task", b"\xff\xfe", b":1:2", *SENSELESS])
async def test_an_undecodable_record_whose_key_names_no_unit_is_only_a_dead_letter(
    publisher: RecordingPublisher, key: bytes | None
) -> None:
    await runner(publisher)((record(b"?", key=key),))
    [dead] = publisher.published
    assert (dead.topic, dead.key) == (DEAD_LETTERS, key)


async def test_an_undecodable_record_keeps_its_foreign_headers_byte_by_byte(publisher: RecordingPublisher) -> None:
    foreign = [("odd", b"\xff\x00"), ("odd", b"twice"), ("", b""), ("no-value", None)]
    await runner(publisher)((record(b"?", headers=foreign),))  # type: ignore[arg-type]  # Kafka allows a header without a value
    assert list(publisher.on(DEAD_LETTERS)[0].headers[:4]) == foreign


@pytest.mark.parametrize("attempt", [b"\xff", b"9" * 5000, b"", b"-1"])
async def test_headers_that_make_no_sense_stop_nothing(publisher: RecordingPublisher, attempt: bytes) -> None:
    source = record(extracted(), headers=[("attempt", attempt), ("traceparent", b"\xff")])
    await runner(publisher)((source,))
    assert len(publisher.on("out")) == 1
    await runner(publisher, raising(TransientError("away")))((source,))
    assert len(publisher.on(FIRST_RETRY)) == 1


async def test_a_newer_producers_unknown_fields_are_no_reason_to_fail(publisher: RecordingPublisher) -> None:
    value = extracted().model_dump_json().encode()[:-1] + b', "invented_later": true}'
    await runner(publisher)((record(value),))
    assert len(publisher.on("out")) == 1


async def test_bad_records_never_hurt_the_others_of_their_batch(publisher: RecordingPublisher) -> None:
    async def mixed(event: ChunksExtracted) -> list[Outgoing]:
        if event.part == 1:
            raise EmbeddingRejectedError("refused")
        if event.part == 2:
            raise TransientError("away")
        return await done(event)

    good, bad = [record(extracted(part=part)) for part in (0, 5)], [record(b"?", key=b"?")]
    refused, away = record(extracted(part=1)), record(extracted(part=2))
    await runner(publisher, mixed)((*bad, refused, good[0], away, good[1]))
    counts = {topic: len(publisher.on(topic)) for topic in ("out", DEAD_LETTERS, FIRST_RETRY, "task.events")}
    assert counts == {"out": 2, DEAD_LETTERS: 2, FIRST_RETRY: 1, "task.events": 2}


async def test_a_publish_that_fails_escapes_so_that_the_batch_comes_again(publisher: RecordingPublisher) -> None:
    publisher.error = ConnectionError("no broker")
    with pytest.raises(ConnectionError, match="no broker"):
        await runner(publisher)((record(extracted()),))
    with pytest.raises(ConnectionError, match="no broker"):
        await runner(publisher, raising(EncryptedPdfError("dead")))((record(extracted()),))


async def test_a_publish_that_fails_escapes_only_after_all_records_have_ended(publisher: RecordingPublisher) -> None:
    release, ended = asyncio.Event(), False

    async def first_at_once(event: ChunksExtracted) -> list[Outgoing]:
        nonlocal ended
        if event.part == 1:
            await release.wait()
            ended = True
        return []

    publisher.error = ConnectionError("no broker")
    running = asyncio.create_task(
        runner(publisher, first_at_once)((record(extracted(part=0)), record(extracted(part=1))))
    )
    async with patience():
        await publisher.asked.wait()
        for _ in range(20):  # turns of the loop, more than a failure needs to come out of a gather
            await asyncio.sleep(0)
        assert not running.done()
        release.set()
        with pytest.raises(ConnectionError):
            await running
    assert ended


async def test_cancellation_passes_through_and_publishes_nothing(publisher: RecordingPublisher) -> None:
    started = asyncio.Semaphore(0)
    cancelled: list[int] = []

    async def hang(event: ChunksExtracted) -> list[Outgoing]:
        started.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(event.part)
            raise
        return []

    running = asyncio.create_task(runner(publisher, hang)(tuple(record(extracted(part=part)) for part in (0, 1))))
    async with patience():
        await started.acquire()
        await started.acquire()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert sorted(cancelled) == [0, 1]
    assert publisher.published == []


async def test_a_handler_that_cancels_itself_has_failed_and_stops_nobody(publisher: RecordingPublisher) -> None:
    async def mixed(event: ChunksExtracted) -> list[Outgoing]:
        if event.part == 1:
            raise asyncio.CancelledError
        return await done(event)

    await runner(publisher, mixed)((record(extracted(part=0)), record(extracted(part=1))))
    assert (len(publisher.on("out")), len(publisher.on(FIRST_RETRY))) == (1, 1)


class Hanging:
    """A handler that never ends by itself, but for part 0; `cancelled` counts how often it was told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.cancelled: list[UUID] = []

    async def __call__(self, event: ChunksExtracted) -> Sequence[Outgoing]:
        if event.part == 0:
            return await done(event)
        self.begun.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(event.task_id)
            raise
        return []


async def test_work_that_takes_too_long_is_stopped_and_tried_again_later(publisher: RecordingPublisher) -> None:
    handle = Hanging()
    async with patience():
        await runner(publisher, handle, limit=timedelta(milliseconds=20))(
            (record(extracted(part=0)), record(extracted(part=1)))
        )
    assert handle.cancelled == [TASK]
    assert len(publisher.on("out")) == 1
    assert headers_of(publisher.on(FIRST_RETRY)[0])["error-code"] == b"deadline_exceeded"
    [retry] = retries(publisher)
    assert (retry.part, retry.code, retry.message) == (1, "deadline_exceeded", "The work took longer than 0.02 s.")


def canceled(*tasks: UUID) -> Cancellations:
    cancellations = Cancellations()
    for task in tasks:
        cancellations.add(task)
    return cancellations


async def test_the_records_of_a_canceled_task_are_dropped_before_their_work_begins(
    publisher: RecordingPublisher,
) -> None:
    handled: list[UUID] = []

    async def keep(event: Event) -> Sequence[Outgoing]:
        handled.append(event.task_id)
        return await done(event)

    await runner(publisher, keep, canceled=canceled(TASK))(
        (record(extracted()), record(extracted(task_id=OTHER_TASK)), record(extracted(part=9)))
    )
    assert handled == [OTHER_TASK]
    assert [each.key for each in publisher.published] == [str(OTHER_TASK).encode()]


async def test_running_work_of_a_canceled_task_is_stopped_and_nothing_is_published_of_it(
    publisher: RecordingPublisher,
) -> None:
    handle, cancellations = Hanging(), Cancellations()
    batch = (record(extracted()), record(extracted(part=4)), record(extracted(task_id=OTHER_TASK, part=0)))
    running = asyncio.create_task(runner(publisher, handle, canceled=cancellations)(batch))
    async with patience():
        await handle.begun.acquire()
        await handle.begun.acquire()
        cancellations.add(TASK)
        await running
    assert handle.cancelled == [TASK, TASK]
    assert [each.key for each in publisher.published] == [str(OTHER_TASK).encode()]


async def test_an_error_of_work_that_is_stopped_for_a_cancellation_goes_nowhere(publisher: RecordingPublisher) -> None:
    begun, cancellations = asyncio.Event(), Cancellations()

    async def fail(_: Event) -> Sequence[Outgoing]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise EncryptedPdfError("while it cleaned up")

    running = asyncio.create_task(runner(publisher, fail, canceled=cancellations)((record(extracted()),)))
    async with patience():
        await begun.wait()
        cancellations.add(TASK)
        await running
    assert publisher.published == []


async def test_where_work_can_be_undone_it_is_not_stopped_but_ends_and_reports(publisher: RecordingPublisher) -> None:
    begun, release, cancellations = asyncio.Event(), asyncio.Event(), Cancellations()
    undone: list[Event] = []

    async def index(event: Event) -> Sequence[Outgoing]:
        begun.set()
        await release.wait()
        return await done(event)

    async def undo(event: Event) -> Sequence[Outgoing]:
        undone.append(event)
        return []

    run = runner(publisher, index, canceled=cancellations, undo=undo)
    running = asyncio.create_task(run((record(extracted()),)))
    async with patience():
        await begun.wait()
        cancellations.add(TASK)
        release.set()
        await running
    assert (len(publisher.on("out")), undone) == (1, [])


async def test_a_dropped_record_is_undone_for_an_earlier_owner_may_have_done_its_work(
    publisher: RecordingPublisher,
) -> None:
    undone: list[UUID] = []

    async def undo(event: Event) -> Sequence[Outgoing]:
        undone.append(event.task_id)
        return []

    run = runner(publisher, canceled=canceled(TASK), undo=undo)
    await run((record(extracted()), record(extracted(task_id=OTHER_TASK))))
    assert undone == [TASK]
    assert [each.key for each in publisher.published] == [str(OTHER_TASK).encode()]


async def test_what_could_not_be_undone_comes_again_but_nobody_is_told(publisher: RecordingPublisher) -> None:
    away = raising(TransientError("the store is away"))
    await runner(publisher, canceled=canceled(TASK), undo=away)((record(extracted()),))
    assert [each.topic for each in publisher.published] == [FIRST_RETRY]


async def test_an_undecodable_record_of_a_canceled_task_is_a_dead_letter_that_nobody_is_told_of(
    publisher: RecordingPublisher,
) -> None:
    await runner(publisher, canceled=canceled(TASK))((record(b"?"),))
    assert [each.topic for each in publisher.published] == [DEAD_LETTERS]


async def test_what_is_no_unit_of_work_is_never_dropped(publisher: RecordingPublisher) -> None:
    event = DocumentCompleted(task_id=TASK, document_id=TASK, owner="alice", submitted_at=NOON)
    run = runner(publisher, topic=DOCUMENTS_COMPLETED, event=DocumentCompleted, canceled=canceled(TASK))
    await run((record(event),))
    assert len(publisher.on("out")) == 1


async def test_a_handlers_log_lines_say_which_record_and_task_they_are_about(publisher: RecordingPublisher) -> None:
    seen: dict[UUID, dict[str, object]] = {}
    both = asyncio.Barrier(2)

    async def look(event: Event) -> Sequence[Outgoing]:
        await both.wait()
        seen[event.task_id] = structlog.contextvars.get_contextvars()
        return []

    batch = (
        record(extracted(), partition=1, offset=10),
        record(extracted(task_id=OTHER_TASK), partition=2, offset=20),
    )
    async with patience():
        await runner(publisher, look)(batch)
    place = {"topic": "chunks.extracted"}
    assert seen[TASK] == place | {"partition": 1, "offset": 10, "task_id": str(TASK)}
    assert seen[OTHER_TASK] == place | {"partition": 2, "offset": 20, "task_id": str(OTHER_TASK)}
    assert not structlog.contextvars.get_contextvars()


@pytest.mark.parametrize(("error", "with_stack"), [(ValueError("a bug"), True), (TransientError("away"), False)])
async def test_a_failure_is_logged_with_its_stack_only_where_nobody_foresaw_it(
    publisher: RecordingPublisher, error: Exception, *, with_stack: bool
) -> None:
    with capture_logs() as lines:
        await runner(publisher, raising(error))((record(extracted()),))
    [line] = [line for line in lines if line["event"] == "record failed"]
    assert (line["log_level"], line["error"], line["attempt"]) == ("warning", str(error), 1)
    assert line["next_attempt_at"] == (NOON + RETRY_DELAYS[0]).isoformat()
    assert bool(line["exc_info"]) == with_stack


@pytest.mark.parametrize(
    ("handle", "outcome"),
    [
        (done, "done"),
        (raising(TransientError("away")), "retried"),
        (raising(EncryptedPdfError("dead")), "dead"),
        (done, "canceled"),
    ],
)
async def test_records_are_counted_by_outcome(publisher: RecordingPublisher, handle: Handle[Any], outcome: str) -> None:
    labels = {"stage": "embed", "topic": "chunks.extracted", "outcome": outcome}

    def count() -> float:
        return REGISTRY.get_sample_value("paperlane_records_total", labels) or 0

    before = count()
    cancellations = canceled(TASK) if outcome == "canceled" else None
    await runner(publisher, handle, canceled=cancellations)((record(extracted()), record(extracted(part=9))))
    assert count() - before == 2


@pytest.mark.parametrize(
    ("handle", "paused"),
    [
        (done, False),
        (raising(TransientError("away")), False),
        (raising(EncryptedPdfError("a password")), False),
        (raising(EmbeddingRejectedError("no such model")), True),
    ],
)
async def test_only_dead_letters_for_no_fault_of_their_document_pause_a_stage(
    publisher: RecordingPublisher, handle: Handle[Any], *, paused: bool
) -> None:
    stage = runner(publisher, handle)
    with stage.breaker.batch():
        await stage(tuple(record(extracted(part=part)) for part in range(MIN_RECORDS)))
    assert (stage.breaker.problem() is not None) is paused


async def test_the_share_of_dead_letters_that_pauses_a_stage_is_a_setting(publisher: RecordingPublisher) -> None:
    runtime = Runtime(publisher, dead_letter_cap=1.0)
    stage = StageRunner(CHUNKS_EXTRACTED, ChunksExtracted, raising(EmbeddingRejectedError("no")), runtime)
    with stage.breaker.batch():
        await stage(tuple(record(extracted(part=part)) for part in range(MIN_RECORDS)))
    assert stage.breaker.problem() is None


async def test_records_of_other_topics_are_read_as_their_own_events(publisher: RecordingPublisher) -> None:
    batch: tuple[Record, ...] = (record(submitted()), record(pages_requested()))
    await runner(publisher, topic=DOCUMENTS_SUBMITTED, event=DocumentSubmitted)(batch[:1])
    await runner(publisher, topic=PAGES_REQUESTED, event=PagesRequested)(batch[1:])
    assert len(publisher.on("out")) == 2
