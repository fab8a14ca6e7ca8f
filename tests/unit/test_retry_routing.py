from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.broker import Record
from shared.delays import LONGEST_DELAY
from shared.errors import (
    EncryptedPdfError,
    PermanentError,
    RateLimitedError,
    TransientError,
    UndecodableRecordError,
    error_message,
)
from shared.kafka import LARGEST_RECORD, Outgoing
from shared.relay import due_at
from shared.retry import LONGEST_WAIT, MAX_STACK_CHARACTERS, attempt_of, route
from shared.settings import RETRY_DELAYS
from shared.topics import CHUNKS_EXTRACTED, WORK_RETENTION
from tests.support.builders import NOON, record

OURS = {
    "attempt",
    "origin-topic",
    "origin-partition",
    "origin-offset",
    "error-type",
    "error-code",
    "error-message",
    "failed-at",
    "consumer-group",
}


def headers_of(outgoing: Outgoing) -> dict[str, str]:
    return {name: value.decode() for name, value in outgoing.headers}


def come_again(outgoing: Outgoing, attempt: int) -> Record:
    """Bring a record back to its topic, as a relay does."""
    others = [(name, value) for name, value in outgoing.headers if name != "attempt"]
    headers = [*others, ("attempt", str(attempt).encode())]
    return record(outgoing.value, key=outgoing.key, headers=headers)


def test_a_transient_error_waits_in_the_first_retry_topic() -> None:
    decision = route(record(b"{}"), TransientError("away"), topic=CHUNKS_EXTRACTED, now=NOON)
    assert decision.record.topic == "chunks.extracted.retry.60s"
    assert (decision.due_at, decision.attempt) == (NOON + RETRY_DELAYS[0], 1)
    assert headers_of(decision.record)["due-at"] == (NOON + RETRY_DELAYS[0]).isoformat()


def test_a_record_passes_every_delay_and_then_becomes_a_dead_letter() -> None:
    current, topics, attempts = record(b"\x00\xff", key=b"k"), [], []
    for attempt in range(2, 6):
        decision = route(current, TransientError("away"), topic=CHUNKS_EXTRACTED, now=NOON)
        topics.append(decision.record.topic.removeprefix("chunks.extracted."))
        attempts.append(decision.attempt)
        current = come_again(decision.record, attempt)
    assert topics == ["retry.60s", "retry.120s", "retry.240s", "dlq"]
    assert attempts == [1, 2, 3, 4]
    assert (current.key, current.value) == (b"k", b"\x00\xff")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), MemoryError(), OSError("disk")])
def test_an_error_that_nobody_foresaw_is_tried_again(error: Exception) -> None:
    decision = route(record(b"{}"), error, topic=CHUNKS_EXTRACTED, now=NOON)
    assert decision.due_at == NOON + RETRY_DELAYS[0]
    assert headers_of(decision.record)["error-code"] == "internal_error"


@pytest.mark.parametrize("error", [EncryptedPdfError("locked"), UndecodableRecordError("no"), PermanentError("never")])
def test_a_permanent_error_is_a_dead_letter_at_the_first_attempt(error: PermanentError) -> None:
    decision = route(record(b"{}"), error, topic=CHUNKS_EXTRACTED, now=NOON)
    assert (decision.record.topic, decision.due_at) == ("chunks.extracted.dlq", None)
    assert headers_of(decision.record)["error-code"] == error.code
    assert "due-at" not in headers_of(decision.record)


@pytest.mark.parametrize(
    ("wish", "wait"),
    [
        (timedelta(minutes=10), timedelta(minutes=10)),
        (RETRY_DELAYS[0], RETRY_DELAYS[0]),
        (timedelta(seconds=1), RETRY_DELAYS[0]),
        (timedelta(0), RETRY_DELAYS[0]),
        (None, RETRY_DELAYS[0]),
        (timedelta(days=400), LONGEST_WAIT),
        (timedelta.max, LONGEST_WAIT),
    ],
)
def test_a_providers_wish_is_honoured_where_it_is_longer_than_the_delay(
    wish: timedelta | None, wait: timedelta
) -> None:
    error = RateLimitedError("slow down", retry_after=wish)
    assert route(record(b"{}"), error, topic=CHUNKS_EXTRACTED, now=NOON).due_at == NOON + wait


def test_a_record_never_waits_for_longer_than_its_topic_keeps_it() -> None:
    assert LONGEST_WAIT + LONGEST_DELAY < WORK_RETENTION


@pytest.mark.parametrize("wish", [None, timedelta(seconds=600)])
def test_jitter_lengthens_a_wait_by_up_to_its_share_of_the_delay_and_never_shortens_it(wish: timedelta | None) -> None:
    error, least = RateLimitedError("slow down", retry_after=wish), wish or RETRY_DELAYS[0]
    decisions = [route(record(b"{}"), error, topic=CHUNKS_EXTRACTED, now=NOON, jitter=0.5) for _ in range(200)]
    waits = [decision.due_at - NOON for decision in decisions if decision.due_at]
    assert least <= min(waits)
    assert max(waits) <= least + RETRY_DELAYS[0] / 2
    assert max(waits) - min(waits) > RETRY_DELAYS[0] / 4, "all came out alike"
    assert {decision.record.topic for decision in decisions} == {"chunks.extracted.retry.60s"}


def test_equal_delays_share_a_topic_and_still_count_as_two() -> None:
    delays = (timedelta(seconds=5), timedelta(seconds=5))
    current, topics = record(b"{}"), []
    for attempt in range(2, 5):
        decision = route(current, TransientError("away"), topic=CHUNKS_EXTRACTED, now=NOON, delays=delays)
        topics.append(decision.record.topic.removeprefix("chunks.extracted."))
        current = come_again(decision.record, attempt)
    assert topics == ["retry.5s", "retry.5s", "dlq"]


def test_a_retried_record_tells_where_it_came_from_and_what_happened() -> None:
    source = record(b"{}", topic="chunks.extracted", partition=5, offset=77)
    decision = route(source, RateLimitedError("slow down"), topic=CHUNKS_EXTRACTED, now=NOON)
    assert headers_of(decision.record) == {
        "attempt": "1",
        "origin-topic": "chunks.extracted",
        "origin-partition": "5",
        "origin-offset": "77",
        "error-type": "RateLimitedError",
        "error-code": "rate_limited",
        "error-message": "slow down",
        "failed-at": NOON.isoformat(),
        "consumer-group": "embedder",
        "due-at": (NOON + RETRY_DELAYS[0]).isoformat(),
    }


def test_a_dead_letter_carries_the_end_of_its_stack() -> None:
    def deep(levels: int) -> None:  # and shallow: a frame that calls itself would be shown three times only
        if levels == 0:
            raise EncryptedPdfError("the reason")
        deep(levels - 1) if levels % 2 else shallow(levels)

    def shallow(levels: int) -> None:
        deep(levels - 1)

    with pytest.raises(EncryptedPdfError) as caught:
        deep(200)
    decision = route(record(b"{}"), caught.value, topic=CHUNKS_EXTRACTED, now=NOON)
    stack = headers_of(decision.record)["error-stack"]
    assert len(stack) == MAX_STACK_CHARACTERS
    assert stack.endswith("EncryptedPdfError: the reason\n")


@pytest.mark.parametrize("header", [b"", b"0", b"-3", b"two", b"1.5", b"\xff", b"9" * 5000, "٣".encode(), None])
def test_an_attempt_that_makes_no_sense_counts_as_the_first(header: bytes) -> None:
    assert attempt_of(record(b"{}", headers=[("attempt", header)])) == 1


def test_an_attempt_is_read_from_the_last_header_of_that_name() -> None:
    assert attempt_of(record(b"{}", headers=[("attempt", b"2"), ("attempt", b"3")])) == 3


def test_an_attempt_beyond_the_last_delay_is_a_dead_letter() -> None:
    source = record(b"{}", headers=[("attempt", b"999")])
    assert route(source, TransientError("away"), topic=CHUNKS_EXTRACTED, now=NOON).due_at is None


@pytest.mark.parametrize("error", [TransientError("away"), UndecodableRecordError("no")])
@pytest.mark.parametrize(
    "source",
    [
        record(bytes(3 << 20)),
        record(b"{}", key=bytes(3 << 20)),
        record(b"{}", headers=[("x", bytes(1 << 20)), ("x", bytes(1 << 20))]),
    ],
    ids=["value", "key", "headers"],
)
def test_of_a_record_that_no_topic_takes_the_dead_letter_tells_where_it_lies(source: Record, error: Exception) -> None:
    decision = route(replace(source, offset=7), error, topic=CHUNKS_EXTRACTED, now=NOON)
    dead = decision.record
    assert (dead.topic, decision.due_at) == ("chunks.extracted.dlq", None)
    assert (dead.key, dead.value) == (None, None)
    headers = headers_of(dead)
    assert (headers["origin-topic"], headers["origin-partition"], headers["origin-offset"]) == (
        "chunks.extracted",
        "0",
        "7",
    )
    assert headers.keys() == OURS | {"error-stack"}


def test_the_largest_record_of_a_work_topic_is_kept_whole_with_the_longest_reason() -> None:
    source = record(bytes(1 << 20), headers=[("x", b"y" * 1000)])
    reason = UndecodableRecordError("\U0001f600" * 10_000)
    dead = route(source, reason, topic=CHUNKS_EXTRACTED, now=NOON).record
    assert dead.value == source.value
    assert len(dead.value or b"") + sum(len(value) for _, value in dead.headers) < LARGEST_RECORD


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", "ValueError"),
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        ("half \ud800", "half ?"),
        ("é値😀\n", "é値😀\n"),
        ("x" * 10**6, "x" * 2000),
    ],
)
def test_an_errors_text_is_fit_to_travel(text: str, shown: str) -> None:
    assert error_message(ValueError(text)) == shown
    header = headers_of(route(record(b"{}"), ValueError(text), topic=CHUNKS_EXTRACTED, now=NOON).record)
    assert header["error-message"] == shown


foreign_headers = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
            lambda name: name not in OURS | {"due-at", "error-stack"}
        ),
        st.binary(max_size=20),
    ),
    max_size=6,
)
errors = st.sampled_from([TransientError("away"), ValueError("\ud800"), PermanentError("never")])


@given(
    headers=foreign_headers,
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    error=errors,
    attempt=st.integers(1, 9),
    now=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 bounds have no zone
)
def test_key_bytes_and_foreign_headers_survive_and_ours_are_there_once(
    headers: list[tuple[str, bytes]],
    key: bytes | None,
    value: bytes | None,
    error: Exception,
    attempt: int,
    now: datetime,
) -> None:
    source = record(value, key=key, headers=[*headers, ("attempt", str(attempt).encode()), ("due-at", b"old")])
    decision = route(source, error, topic=CHUNKS_EXTRACTED, now=now)
    again = route(come_again(decision.record, attempt + 1), error, topic=CHUNKS_EXTRACTED, now=now)
    for outgoing in (decision.record, again.record):
        assert (outgoing.key, outgoing.value) == (key, value)
        assert list(outgoing.headers[: len(headers)]) == headers
        ours = [name for name, _ in outgoing.headers[len(headers) :]]
        assert len(ours) == len(set(ours))
        assert OURS <= set(ours) <= OURS | {"due-at", "error-stack"}
    assert again.attempt == decision.attempt + 1 == attempt + 1


@given(now=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 bounds have no zone
def test_the_due_time_reads_back_as_it_was_decided(now: datetime) -> None:
    decision = route(record(b"{}"), TransientError("away"), topic=CHUNKS_EXTRACTED, now=now)
    assert due_at(record(b"{}", headers=decision.record.headers)) == decision.due_at


@pytest.mark.parametrize("header", [b"", b"soon", b"\xff", None])
def test_a_due_time_that_makes_no_sense_is_now(header: bytes) -> None:
    assert due_at(record(b"{}", headers=[("due-at", header)])) < NOON


def test_a_record_without_a_due_time_is_due() -> None:
    assert due_at(record(b"{}")) < NOON


def test_a_due_time_without_a_zone_is_in_utc() -> None:
    assert due_at(record(b"{}", headers=[("due-at", b"2026-03-01T12:00:00")])) == NOON


def test_other_delays_are_passed_through_in_their_order() -> None:
    delays = (timedelta(seconds=5),)
    first = route(record(b"{}"), TransientError("away"), topic=CHUNKS_EXTRACTED, now=NOON, delays=delays)
    assert (first.record.topic, first.due_at) == ("chunks.extracted.retry.5s", NOON + delays[0])
    second = route(come_again(first.record, 2), ValueError(), topic=CHUNKS_EXTRACTED, now=NOON, delays=delays)
    assert second.record.topic == "chunks.extracted.dlq"
