"""Delayed retries on a real broker: never early, in their time, through a rebalance."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

from shared.kafka import Publisher
from shared.relay import Relay
from shared.retry import attempt_of
from shared.settings import KafkaSettings
from shared.topics import Topic
from tests.support.eventually import eventually
from tests.support.kafka_lab import KafkaLab

DELAY = timedelta(seconds=60)
"""The delay whose topic the records wait in; each record's own header says when it is due."""


@asynccontextmanager
async def relay_of(topic: Topic, settings: KafkaSettings) -> AsyncIterator[Relay]:
    publisher = Publisher(settings)
    await publisher.start()
    try:
        relay = Relay([topic], f"relay-of-{topic.name}", settings, publisher)
        async with relay.running():
            yield relay
    finally:
        await publisher.aclose()


async def wait_in(lab: KafkaLab, topic: Topic, value: bytes, due_at: datetime, attempt: int = 1) -> None:
    headers = [
        ("due-at", due_at.isoformat().encode()),
        ("attempt", str(attempt).encode()),
        ("foreign", b"\xff\x00"),
    ]
    await lab.send(topic.retry(DELAY), value, key=b"key", headers=headers)


async def test_a_record_comes_back_as_it_was_when_it_is_due_and_not_before(lab: KafkaLab) -> None:
    topic = await lab.topic()
    due_at = datetime.now(UTC) + timedelta(seconds=1.5)
    await wait_in(lab, topic, b"waits", due_at, attempt=2)
    async with relay_of(topic, lab.settings):
        [record] = await lab.read(topic.name, 1)

    returned_at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    assert due_at - timedelta(milliseconds=1) <= returned_at, "Kafka's timestamps have milliseconds"
    assert (record.key, record.value) == (b"key", b"waits")
    assert attempt_of(record) == 3
    assert ("foreign", b"\xff\x00") in record.headers


async def test_records_come_back_each_in_its_time_and_once(lab: KafkaLab) -> None:
    topic = await lab.topic()
    start = datetime.now(UTC)
    due = {b"%d" % n: start + timedelta(seconds=0.3 * n) for n in range(8)}
    for value, due_at in due.items():
        await wait_in(lab, topic, value, due_at)
    async with relay_of(topic, lab.settings):
        records = await lab.read(topic.name, len(due))

    assert [record.value for record in records] == list(due)
    for record in records:
        assert record.timestamp >= int(due[record.value or b""].timestamp() * 1000)


async def test_a_record_whose_due_time_makes_no_sense_comes_back_at_once(lab: KafkaLab) -> None:
    topic = await lab.topic()
    await lab.send(topic.retry(DELAY), b"1", key=b"k", headers=[("due-at", b"soon")])
    await lab.send(topic.retry(DELAY), b"2", key=b"k", headers=[])
    async with relay_of(topic, lab.settings):
        assert [record.value for record in await lab.read(topic.name, 2)] == [b"1", b"2"]


async def test_a_rebalance_while_waiting_brings_nothing_early_and_loses_nothing(lab: KafkaLab) -> None:
    topic = await lab.topic()
    due_at = datetime.now(UTC) + timedelta(seconds=3)
    for n in range(5):
        await wait_in(lab, topic, b"%d" % n, due_at)
    async with AsyncExitStack() as first:
        relay = await first.enter_async_context(relay_of(topic, lab.settings))

        async def it_waits() -> None:
            assert relay._paused

        await eventually(it_waits)
        async with relay_of(topic, lab.settings):  # joins the group, and takes over when the first one leaves
            await first.aclose()
            records = await lab.read(topic.name, 5)

    assert {record.value for record in records} == {b"%d" % n for n in range(5)}
    assert all(record.timestamp >= int(due_at.timestamp() * 1000) for record in records)
