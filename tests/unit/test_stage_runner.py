import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from shared.broker import Record
from shared.errors import (
    EmbeddingRejectedError,
    EncryptedPdfError,
    RateLimitedError,
    TransientError,
)
from shared.events import ChunksExtracted, DocumentSubmitted, Event, PagesRequested, Stage, UnitFailed
from shared.kafka import Outgoing
from shared.settings import RETRY_DELAYS
from shared.stage import Handle, StageRunner
from shared.topics import CHUNKS_EXTRACTED, DOCUMENTS_SUBMITTED, PAGES_REQUESTED, Topic
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
) -> StageRunner[Any]:
    return StageRunner(topic, event, handle, publisher, clock=lambda: NOON)


def headers_of(outgoing: Outgoing) -> dict[str, bytes]:
    return dict(outgoing.headers)


def failures(publisher: RecordingPublisher) -> list[UnitFailed]:
    return [UnitFailed.model_validate_json(each.value or b"") for each in publisher.on("task.events")]


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
    [retried] = publisher.published
    assert (retried.topic, retried.key, retried.value) == (FIRST_RETRY, source.key, source.value)
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
    assert stages == ["retry.60s", "retry.120s", "retry.240s", "dlq", "task.events"]
    [failed] = failures(publisher)
    assert (failed.code, failed.message) == ("temporarily_unavailable", "still away")
    assert (failed.shard, failed.part) == (2, 3)


async def test_a_providers_longer_wish_is_honoured(publisher: RecordingPublisher) -> None:
    wish = timedelta(minutes=7)
    await runner(publisher, raising(RateLimitedError("slow down", retry_after=wish)))((record(extracted()),))
    [retried] = publisher.published
    assert retried.topic == FIRST_RETRY
    assert headers_of(retried)["due-at"] == (NOON + wish).isoformat().encode()


@pytest.mark.parametrize(
    ("topic", "event", "stage", "shard", "part"),
    [
        (DOCUMENTS_SUBMITTED, submitted(), Stage.PARSE, 0, 0),
        (PAGES_REQUESTED, pages_requested(shard=4), Stage.PARSE, 4, 0),
        (CHUNKS_EXTRACTED, extracted(shard=2, part=3), Stage.EMBED, 2, 3),
    ],
)
async def test_a_permanent_failure_is_a_dead_letter_and_fails_its_unit(
    publisher: RecordingPublisher, topic: Topic, event: Event, stage: Stage, shard: int, part: int
) -> None:
    run = runner(publisher, raising(EncryptedPdfError("a password is needed")), topic=topic, event=type(event))
    source = record(event)
    await run((source,))
    [dead] = publisher.on(topic.dead_letters)
    assert (dead.key, dead.value) == (source.key, source.value)
    [failed] = failures(publisher)
    assert failed == UnitFailed(
        task_id=TASK,
        stage=stage,
        shard=shard,
        part=part,
        code="pdf_encrypted",
        message="a password is needed",
        failed_at=NOON,
    )
    assert publisher.on("task.events")[0].key == str(TASK).encode()


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
    assert failed.message.startswith("no ChunksExtracted: ")
    assert publisher.on("out") == []


async def test_the_reason_names_the_field_that_is_wrong(publisher: RecordingPublisher) -> None:
    await runner(publisher)((record(_json(shard=-1)),))
    assert failures(publisher)[0].message == "no ChunksExtracted: shard: Input should be greater than or equal to 0"


@pytest.mark.parametrize("key", [None, b"", b"no task", b"\xff\xfe", b":1:2"])
async def test_an_undecodable_record_whose_key_names_no_task_is_only_a_dead_letter(
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
    assert counts == {"out": 2, DEAD_LETTERS: 2, FIRST_RETRY: 1, "task.events": 1}


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


async def test_a_handler_that_cancels_itself_is_no_success(publisher: RecordingPublisher) -> None:
    with pytest.raises(asyncio.CancelledError):
        await runner(publisher, raising(asyncio.CancelledError()))((record(extracted()),))
    assert publisher.published == []


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
    [(done, "done"), (raising(TransientError("away")), "retried"), (raising(EncryptedPdfError("dead")), "dead")],
)
async def test_records_are_counted_by_outcome(publisher: RecordingPublisher, handle: Handle[Any], outcome: str) -> None:
    labels = {"stage": "embed", "topic": "chunks.extracted", "outcome": outcome}

    def count() -> float:
        return REGISTRY.get_sample_value("paperlane_records_total", labels) or 0

    before = count()
    await runner(publisher, handle)((record(extracted()), record(extracted(part=9))))
    assert count() - before == 2


async def test_records_of_other_topics_are_read_as_their_own_events(publisher: RecordingPublisher) -> None:
    batch: tuple[Record, ...] = (record(submitted()), record(pages_requested()))
    await runner(publisher, topic=DOCUMENTS_SUBMITTED, event=DocumentSubmitted)(batch[:1])
    await runner(publisher, topic=PAGES_REQUESTED, event=PagesRequested)(batch[1:])
    assert len(publisher.on("out")) == 2
