import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from shared.broker import Record
from shared.cancellations import Cancellations
from shared.errors import DependencyUnavailableError, PermanentError, TransientError
from shared.events import TASK_EVENT, Chunk, ChunksExtracted, Stage, Step, TaskEvent, UnitFailed, UnitRetryScheduled
from shared.kafka import Outgoing, Publisher
from shared.settings import RETRY_DELAYS
from shared.stage import Runtime, StageRunner
from shared.topics import TASK_EVENTS, Topic
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import Ends, KafkaLab
from tests.support.task_events import START, new_task


def part_of(number: int, text: str = "text") -> ChunksExtracted:
    task = new_task()
    return ChunksExtracted(
        task_id=task.task_id,
        document_id=task.document_id,
        owner=task.owner,
        filename=task.filename,
        submitted_at=task.created_at,
        shard=0,
        part=number,
        weight=1000,
        chunks=(Chunk(n=0, text=text, first_page=1, last_page=1),),
    )


class Work:
    """What a stage does here: it publishes each part's text, and fails or hangs as it is told by the text."""

    def __init__(self, lab: KafkaLab, topic: Topic, output: Topic, publisher: Publisher) -> None:
        self.lab = lab
        self.topic = topic
        self.output = output
        self.handled: list[ChunksExtracted] = []
        self.hanging = asyncio.Event()
        self.canceled = Cancellations()
        runtime = Runtime(publisher, self.canceled, clock=lambda: START)
        self.runner = StageRunner(topic, ChunksExtracted, self._handle, runtime)

    async def _handle(self, event: ChunksExtracted) -> Sequence[Outgoing]:
        self.handled.append(event)
        match event.chunks[0].text:
            case "transient":
                raise TransientError("try later")
            case "unforeseen":
                raise ZeroDivisionError("nobody foresaw it")
            case "permanent":
                raise PermanentError("never")
            case "too large":
                return [Outgoing(self.output.name, b"large", bytes(3 << 19))]
            case "hang":
                self.hanging.set()
                await asyncio.Event().wait()
                return []
            case text:
                return [Outgoing(self.output.name, str(event.part).encode(), text.encode())]

    async def send(self, *records: ChunksExtracted | bytes, partition: int | None = None) -> None:
        for record in records:
            event = record if isinstance(record, ChunksExtracted) else None
            value = event.model_dump_json().encode() if event else record
            key = f"{event.task_id}:0:{event.part}".encode() if event else b"no task"
            assert isinstance(value, bytes)
            await self.lab.send(self.topic.name, value, key=key, partition=partition, headers=[("trace", b"\xff\x00")])

    async def outputs(self, count: int) -> list[bytes | None]:
        return [record.value for record in await self.lab.read(self.output.name, count)]

    async def committed(self, offsets: dict[int, int]) -> None:
        async def check() -> None:
            assert await self.lab.committed(self.topic) == offsets

        await eventually(check)


@pytest.fixture
async def work(lab: KafkaLab, publisher: Publisher) -> Work:
    return Work(lab, await lab.topic(partitions=2, step=Step.EMBED), await lab.topic(), publisher)


def text_headers(record: Record) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers if name != "trace"}


async def reports(lab: KafkaLab, since: Ends, task_ids: set[UUID]) -> list[TaskEvent]:
    ends = await lab.ends(TASK_EVENTS.name)
    records = await lab.read(TASK_EVENTS.name, sum(ends.values()) - sum(since.values()), since=since)
    events = [TASK_EVENT.validate_json(record.value or b"") for record in records]
    return [event for event in events if event.task_id in task_ids]


async def failures(lab: KafkaLab, since: Ends, task_ids: set[UUID]) -> list[UnitFailed]:
    return [event for event in await reports(lab, since, task_ids) if isinstance(event, UnitFailed)]


async def test_poison_first_and_last_in_a_partition_stops_nothing(work: Work, lab: KafkaLab) -> None:
    poison = [b"\xff\xfe", b"{}", b'{"schema_version": 99}', b""]
    for partition in range(2):
        await work.send(poison[0], poison[1], partition=partition)
        await work.send(part_of(partition, f"good {partition}"), partition=partition)
        await work.send(poison[2], poison[3], partition=partition)
    async with lab.consuming(work.topic, work.runner, max_records=4):
        await work.committed({0: 5, 1: 5})
    assert sorted(filter(None, await work.outputs(2))) == [b"good 0", b"good 1"]
    dead = await lab.read(work.topic.dead_letters, 8)
    assert sorted(record.value or b"" for record in dead) == sorted(poison * 2)
    for record in dead:
        assert record.key == b"no task"
        assert dict(record.headers)["trace"] == b"\xff\x00"
        headers = text_headers(record)
        assert (headers["error-code"], headers["error-type"]) == ("record_undecodable", "UndecodableRecordError")
        assert (headers["origin-topic"], headers["consumer-group"]) == (work.topic.name, work.topic.group)
    origins = {(text_headers(record)["origin-partition"], text_headers(record)["origin-offset"]) for record in dead}
    assert origins == {(partition, offset) for partition in "01" for offset in "0134"}


async def test_a_record_without_key_and_value_becomes_a_dead_letter(work: Work, lab: KafkaLab) -> None:
    await lab.send(work.topic.name, None, headers=[("attempt", None)])
    await work.send(part_of(1, "good"), partition=0)
    async with lab.consuming(work.topic, work.runner, max_records=1):
        await work.committed({0: 2})
    (dead,) = await lab.read(work.topic.dead_letters, 1)
    assert (dead.key, dead.value) == (None, b"")
    assert await work.outputs(1) == [b"good"]


async def test_a_record_as_large_as_the_broker_takes_becomes_a_dead_letter(work: Work, lab: KafkaLab) -> None:
    large = bytes(1_048_576 - 200)  # with key, headers and framing as much as a producer may send by default
    await work.send(large, partition=0)
    await work.send(part_of(1, "good"), partition=0)
    async with lab.consuming(work.topic, work.runner, max_records=1):
        await work.committed({0: 2})
    (dead,) = await lab.read(work.topic.dead_letters, 1)
    assert dead.value == large
    assert await work.outputs(1) == [b"good"]


async def test_a_record_that_no_topic_of_ours_takes_leaves_a_dead_letter_that_says_where_it_lies(
    work: Work, lab: KafkaLab
) -> None:
    offset = await lab.send_beyond_limit(work.topic.name, bytes(3_000_000), key=b"\xff")
    await work.send(part_of(1, "good"))
    async with lab.consuming(work.topic, work.runner, max_records=1):
        assert await work.outputs(1) == [b"good"]
        [dead] = await lab.read(work.topic.dead_letters, 1)
    assert (dead.key, dead.value) == (None, b"")
    assert text_headers(dead)["origin-offset"] == str(offset)
    assert text_headers(dead)["error-code"] == "record_undecodable"


async def test_a_record_whose_outputs_are_too_large_is_dead_and_the_batch_goes_on(work: Work, lab: KafkaLab) -> None:
    await work.send(part_of(0, "too large"), part_of(1, "good"), partition=0)
    async with lab.consuming(work.topic, work.runner):
        await work.committed({0: 2})
    assert await work.outputs(1) == [b"good"]
    [dead] = await lab.read(work.topic.dead_letters, 1)
    assert text_headers(dead)["error-code"] == "record_too_large"


@pytest.mark.parametrize("text", ["transient", "unforeseen"])
async def test_a_record_that_always_fails_goes_through_all_retries_to_the_dead_letters_as_it_was(
    work: Work, lab: KafkaLab, text: str
) -> None:
    event, before = part_of(5, text), await lab.ends(TASK_EVENTS.name)
    await work.send(event, partition=1)
    async with lab.consuming(work.topic, work.runner):
        for attempt, delay in enumerate(RETRY_DELAYS, start=1):
            (waiting,) = await lab.read(work.topic.retry(delay), 1)
            headers = text_headers(waiting)
            assert headers["attempt"] == str(attempt)
            assert datetime.fromisoformat(headers["due-at"]) == START + delay
            await _as_the_relay_does(lab, work.topic, waiting)
        (dead,) = await lab.read(work.topic.dead_letters, 1)
    assert (dead.key, dead.value) == (f"{event.task_id}:0:5".encode(), event.model_dump_json().encode())
    assert dict(dead.headers)["trace"] == b"\xff\x00"
    headers = text_headers(dead)
    assert len(headers) == len(dead.headers) - 1  # none of ours twice
    assert headers["attempt"] == str(len(RETRY_DELAYS) + 1) == str(len(work.handled))
    assert headers["failed-at"] == START.isoformat()
    assert headers["error-message"] in ("try later", "nobody foresaw it")
    assert headers["error-code"] == ("temporarily_unavailable" if text == "transient" else "internal_error")
    assert "_handle" in headers["error-stack"]
    assert "due-at" not in headers
    *retries, failure = await reports(lab, before, {event.task_id})
    assert isinstance(failure, UnitFailed)
    assert (failure.stage, failure.shard, failure.part) == (Stage.EMBED, 0, 5)
    assert (failure.code, failure.message) == (headers["error-code"], headers["error-message"])
    assert [retry.attempt for retry in retries if isinstance(retry, UnitRetryScheduled)] == [1, 2, 3]


async def test_a_permanent_failure_is_dead_at_once_and_others_of_its_batch_are_done(work: Work, lab: KafkaLab) -> None:
    bad, before = part_of(1, "permanent"), await lab.ends(TASK_EVENTS.name)
    await work.send(part_of(0, "a"), bad, part_of(2, "b"), partition=0)
    async with lab.consuming(work.topic, work.runner):
        await work.committed({0: 3})
    assert await work.outputs(2) == [b"a", b"b"]
    (dead,) = await lab.read(work.topic.dead_letters, 1)
    assert text_headers(dead)["attempt"] == "1"
    assert [failure.code for failure in await failures(lab, before, {bad.task_id})] == ["permanent_failure"]
    assert await lab.read(work.topic.retry(RETRY_DELAYS[0]), 0) == []


async def test_a_failure_says_where_in_kafka_its_dead_letter_lies(work: Work, lab: KafkaLab) -> None:
    bad, before = [part_of(number, "permanent") for number in range(5)], await lab.ends(TASK_EVENTS.name)
    await work.send(*bad)
    async with lab.consuming(work.topic, work.runner):
        letters = await lab.read(work.topic.dead_letters, 5)
    dead = {(letter.topic, letter.partition, letter.offset): letter for letter in letters}
    failed = await failures(lab, before, {part.task_id for part in bad})
    places = {failure.part: failure.dead_letter for failure in failed}
    assert len(places) == 5
    for part in bad:
        place = places[part.part]
        assert place
        letter = dead[(place.topic, place.partition, place.offset)]
        assert ChunksExtracted.model_validate_json(letter.value or b"") == part


async def test_a_running_part_of_a_task_that_is_canceled_is_dropped_and_the_rest_of_its_batch_is_done(
    work: Work, lab: KafkaLab
) -> None:
    hanging, before = part_of(1, "hang"), await lab.ends(TASK_EVENTS.name)
    await work.send(part_of(0, "a"), hanging, part_of(2, "b"), partition=0)
    async with lab.consuming(work.topic, work.runner):
        await before_long(work.hanging.wait())
        assert await lab.committed(work.topic) == {}
        work.canceled.add(hanging.task_id)
        await work.committed({0: 3})
    assert await work.outputs(2) == [b"a", b"b"]
    assert await reports(lab, before, {hanging.task_id}) == []
    assert await lab.read(work.topic.retry(RETRY_DELAYS[0]), 0) == []
    assert await lab.read(work.topic.dead_letters, 0) == []


async def test_an_undecodable_record_whose_key_names_its_task_fails_that_task(work: Work, lab: KafkaLab) -> None:
    task, before = new_task(), await lab.ends(TASK_EVENTS.name)
    await lab.send(work.topic.name, b"{", key=f"{task.task_id}:3:4".encode(), partition=0)
    async with lab.consuming(work.topic, work.runner):
        await work.committed({0: 1})
    (failure,) = await failures(lab, before, {task.task_id})
    assert (failure.code, failure.step) == ("record_undecodable", Step.EMBED)
    assert (failure.shard, failure.part) == (3, 4)


async def test_a_batch_whose_outputs_cannot_be_published_is_not_committed_and_comes_again(
    work: Work, lab: KafkaLab
) -> None:
    away = Publisher(lab.settings)  # not connected
    refused = asyncio.Event()

    async def run(records: tuple[Record, ...]) -> None:
        try:
            await Work(lab, work.topic, work.output, away).runner(records)
        except DependencyUnavailableError:
            refused.set()
            raise

    await work.send(part_of(0, "once more"), partition=0)
    async with lab.consuming(work.topic, run):
        await before_long(refused.wait())
        assert await lab.committed(work.topic) == {}
    async with lab.consuming(work.topic, work.runner):
        await work.committed({0: 1})
    assert await work.outputs(1) == [b"once more"]


async def test_the_wish_of_a_provider_is_honoured_in_the_retry_record(lab: KafkaLab, publisher: Publisher) -> None:
    topic, wish = await lab.topic(), timedelta(seconds=90)

    async def limited(_: ChunksExtracted) -> Sequence[Outgoing]:
        raise TransientError("too many requests", retry_after=wish)

    runner = StageRunner(topic, ChunksExtracted, limited, Runtime(publisher, clock=lambda: START))
    await lab.send(topic.name, part_of(0).model_dump_json().encode(), key=b"k")
    async with lab.consuming(topic, runner):
        (waiting,) = await lab.read(topic.retry(RETRY_DELAYS[0]), 1)
    assert datetime.fromisoformat(text_headers(waiting)["due-at"]) == START + wish


async def _as_the_relay_does(lab: KafkaLab, topic: Topic, waiting: Record) -> None:
    """Send a record that waited back to where it came from, for its next attempt."""
    headers = dict(waiting.headers)
    attempt = str(int(headers["attempt"]) + 1).encode()
    again = replace(waiting, headers=tuple({**headers, "attempt": attempt}.items()))
    await lab.send(topic.name, again.value, key=again.key, headers=again.headers, partition=0)
