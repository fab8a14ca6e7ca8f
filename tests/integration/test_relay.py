"""Delayed retries on a real broker: never early, in their time, through a rebalance and through jumps of the clock."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from aiokafka import TopicPartition

from shared import relay as relay_module
from shared.clock import Clock, now
from shared.kafka import Publisher
from shared.relay import Relay, due_at
from shared.retry import attempt_of
from shared.settings import KafkaSettings
from shared.topics import Topic
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab

DELAY = timedelta(seconds=60)
"""The delay whose topic the records wait in; each record's own header says when it is due."""

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)

LOOKS = 10
"""So many looks of an idle relay, and it would have done by now what it should not do."""


class JumpingClock:
    """A clock that stands still unless a test moves it, and knows how often the relay has looked at it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self._looks = 0
        self._looked = asyncio.Event()

    def __call__(self) -> datetime:
        self._looks += 1
        self._looked.set()
        return self.now

    async def looked_at(self, times: int = LOOKS) -> None:
        """Wait until the relay has looked so many times more."""
        until = self._looks + times
        while self._looks < until:
            self._looked.clear()
            await before_long(self._looked.wait())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> JumpingClock:
    monkeypatch.setattr(relay_module, "LOOK_INTERVAL", timedelta(milliseconds=20))
    return JumpingClock()


@asynccontextmanager
async def relay_of(topic: Topic, settings: KafkaSettings, clock: Clock = now) -> AsyncIterator[Relay]:
    publisher = Publisher(settings)
    await publisher.start()
    try:
        relay = Relay([topic], settings, publisher, clock)
        async with relay.running():
            yield relay
    finally:
        await publisher.aclose()


async def wait_in(
    lab: KafkaLab, topic: Topic, value: bytes, due_at: datetime, *, failed_at: datetime | None = None, attempt: int = 1
) -> None:
    headers = [
        ("due-at", due_at.isoformat().encode()),
        ("failed-at", (failed_at or due_at - DELAY).isoformat().encode()),
        ("attempt", str(attempt).encode()),
        ("foreign", b"\xff\x00"),
    ]
    await lab.send(topic.retry(DELAY), value, key=b"key", headers=headers)


async def came_back(lab: KafkaLab, topic: Topic, *values: bytes) -> None:
    """Wait until exactly these have come back, in this order."""
    assert [record.value for record in await lab.read(topic.name, len(values))] == list(values)


async def written_to_retry_topic(lab: KafkaLab, topic: Topic) -> int:
    return (await lab.ends(topic.retry(DELAY)))[TopicPartition(topic.retry(DELAY), 0)]


async def test_a_record_comes_back_as_it_was_when_it_is_due_and_not_before(lab: KafkaLab) -> None:
    topic = await lab.topic()
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    await wait_in(lab, topic, b"waits", due, attempt=2)
    async with relay_of(topic, lab.settings):
        [record] = await lab.read(topic.name, 1)

    returned_at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    assert due - timedelta(milliseconds=1) <= returned_at, "Kafka's timestamps have milliseconds"
    assert (record.key, record.value) == (b"key", b"waits")
    assert attempt_of(record) == 3
    assert ("foreign", b"\xff\x00") in record.headers


async def test_records_come_back_each_in_its_time_and_once(lab: KafkaLab) -> None:
    topic = await lab.topic()
    start = datetime.now(UTC)
    due = {b"%d" % n: start + timedelta(seconds=0.3 * n) for n in range(8)}
    for value, due_time in due.items():
        await wait_in(lab, topic, value, due_time)
    async with relay_of(topic, lab.settings):
        records = await lab.read(topic.name, len(due))

    assert [record.value for record in records] == list(due)
    late = [record.timestamp - int(due[record.value or b""].timestamp() * 1000) for record in records]
    assert min(late) >= 0
    assert median(late) < 1000, "milliseconds; the first ones were due before the relay had started"


async def test_a_record_whose_due_time_makes_no_sense_comes_back_at_once(lab: KafkaLab) -> None:
    topic = await lab.topic()
    await lab.send(topic.retry(DELAY), b"1", key=b"k", headers=[("due-at", b"soon")])
    await lab.send(topic.retry(DELAY), b"2", key=b"k", headers=[])
    async with relay_of(topic, lab.settings):
        await came_back(lab, topic, b"1", b"2")


async def test_what_cannot_come_back_is_buried_and_holds_up_nothing(lab: KafkaLab) -> None:
    topic = await lab.topic()
    retry = topic.retry(DELAY)
    large = bytes(3 << 19)
    await lab.send(retry, b"before", key=b"k")
    await lab.send_large(retry, large, key=b"large", headers=[("foreign", b"\xff")])
    await lab.send(retry, None, key=None)  # which comes back, though not as nothing at all
    async with relay_of(topic, lab.settings):
        await came_back(lab, topic, b"before", b"")
    [dead] = await lab.read(topic.dead_letters, 1)
    assert (dead.key, dead.value) == (b"large", large)
    headers = dict(dead.headers)
    assert (headers["foreign"], headers["error-code"], headers["origin-offset"]) == (b"\xff", b"record_too_large", b"1")


async def test_equal_delays_share_a_topic_whose_records_come_back(
    settings: KafkaSettings, nothing_left_running: None
) -> None:
    equal = settings.model_copy(update={"retry_delays": (DELAY, DELAY)})
    async with KafkaLab(equal) as lab:
        topic = await lab.topic()
        await wait_in(lab, topic, b"waits", datetime.now(UTC))
        async with relay_of(topic, equal):
            await came_back(lab, topic, b"waits")


async def test_a_rebalance_while_waiting_brings_nothing_early_and_loses_nothing(lab: KafkaLab) -> None:
    topic = await lab.topic()
    due = datetime.now(UTC) + timedelta(seconds=3)
    for n in range(5):
        await wait_in(lab, topic, b"%d" % n, due)
    async with AsyncExitStack() as first:
        relay = await first.enter_async_context(relay_of(topic, lab.settings))

        async def it_waits() -> None:
            assert relay._paused

        await eventually(it_waits)
        async with relay_of(topic, lab.settings):  # joins the group, and takes over when the first one leaves
            await first.aclose()
            records = await lab.read(topic.name, 5)

    assert {record.value for record in records} == {b"%d" % n for n in range(5)}
    assert all(record.timestamp >= int(due.timestamp() * 1000) for record in records)


async def test_what_is_due_much_later_lets_the_others_pass_and_still_comes_in_its_time(
    lab: KafkaLab, clock: JumpingClock
) -> None:
    topic, start = await lab.topic(), clock.now
    await wait_in(lab, topic, b"in an hour", start + HOUR, failed_at=start)
    await wait_in(lab, topic, b"in a minute", start + DELAY + SECOND)
    async with relay_of(topic, lab.settings, clock):
        clock.now = start + DELAY + SECOND
        await came_back(lab, topic, b"in a minute")
        clock.now = start + HOUR - SECOND
        await clock.looked_at()
        await came_back(lab, topic, b"in a minute")
        clock.now = start + HOUR
        await came_back(lab, topic, b"in a minute", b"in an hour")
    [_, waited] = await lab.read(topic.name, 2)
    assert (waited.key, due_at(waited), attempt_of(waited)) == (b"key", start + HOUR, 2)
    assert ("foreign", b"\xff\x00") in waited.headers


async def test_what_is_due_much_later_goes_to_the_tail_once_for_each_delay_that_passes(
    lab: KafkaLab, clock: JumpingClock
) -> None:
    topic, start = await lab.topic(), clock.now
    for value in (b"1", b"2"):
        await wait_in(lab, topic, value, start + HOUR, failed_at=start)
    async with relay_of(topic, lab.settings, clock):
        for moves in range(4):
            clock.now = start + moves * DELAY

            async def as_many_as_moved(count: int = 2 + 2 * moves) -> None:
                assert await written_to_retry_topic(lab, topic) == count

            await eventually(as_many_as_moved)
            await clock.looked_at()
            await as_many_as_moved()
        assert await lab.read(topic.name, 0) == []


async def test_a_record_due_within_one_delay_keeps_its_place(lab: KafkaLab, clock: JumpingClock) -> None:
    topic, start = await lab.topic(), clock.now
    await wait_in(lab, topic, b"waits", start + DELAY, failed_at=start - HOUR)
    async with relay_of(topic, lab.settings, clock):
        await clock.looked_at()
        clock.now = start + DELAY
        await came_back(lab, topic, b"waits")
    assert await written_to_retry_topic(lab, topic) == 1


async def test_a_clock_that_jumps_ahead_brings_what_is_due_by_it_and_nothing_else(
    lab: KafkaLab, clock: JumpingClock
) -> None:
    topic, start = await lab.topic(), clock.now
    await wait_in(lab, topic, b"1", start + DELAY)
    await wait_in(lab, topic, b"2", start + 2 * HOUR)
    async with relay_of(topic, lab.settings, clock):
        await clock.looked_at()
        assert await lab.read(topic.name, 0) == []
        clock.now = start + HOUR
        await came_back(lab, topic, b"1")
        await clock.looked_at()
        await came_back(lab, topic, b"1")
        assert await written_to_retry_topic(lab, topic) <= 3
        clock.now = start + 2 * HOUR
        await came_back(lab, topic, b"1", b"2")


async def test_a_clock_that_is_put_back_brings_nothing_early_and_holds_up_nothing_that_failed_since(
    lab: KafkaLab, clock: JumpingClock
) -> None:
    topic, start = await lab.topic(), clock.now
    await wait_in(lab, topic, b"before", start + DELAY)
    async with relay_of(topic, lab.settings, clock):
        await clock.looked_at()
        clock.now = earlier = start - HOUR
        await wait_in(lab, topic, b"since", earlier + DELAY)
        await clock.looked_at()
        assert await lab.read(topic.name, 0) == []
        assert await written_to_retry_topic(lab, topic) <= 3
        clock.now = earlier + DELAY
        await came_back(lab, topic, b"since")
        clock.now = start + DELAY - SECOND
        await clock.looked_at()
        await came_back(lab, topic, b"since")
        clock.now = start + DELAY
        await came_back(lab, topic, b"since", b"before")
