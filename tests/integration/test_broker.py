import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import TopicPartition
from faststream.kafka.helpers.rebalance_listener import _LoggingListener
from typing_extensions import override

from shared import broker as broker_module
from shared.broker import Broker, Record, WaitingConsumer, subscribe
from shared.subscription import Subscription
from shared.topics import Topic
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab, consumer_of


@pytest.fixture(autouse=True)
def quick_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "AGAIN_PAUSE", timedelta(milliseconds=10))


class Recorder:
    """A handler that writes down what it is given, and can be told to fail or to wait."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.batches: list[list[bytes | None]] = []
        self.running = 0
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.fails: Sequence[bytes] = ()

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]

    async def __call__(self, records: tuple[Record, ...]) -> None:
        self.running += 1
        self.entered.set()
        try:
            await self.may_go_on.wait()
            self.batches.append([record.value for record in records])
            if any(record.value in self.fails for record in records):
                raise RuntimeError("as the test wants it")
            self.records += records
        finally:
            self.running -= 1

    async def has(self, count: int) -> None:
        async def check() -> None:
            assert len(self.records) >= count, self.values

        await eventually(check)


class Polls:
    """The polls of FastStream, which sleeps, deaf to what arrives, after each that returns nothing."""

    def __init__(self) -> None:
        self.begun = 0
        self.returned: list[int] = []
        self.several_timeouts = asyncio.Event()

    def watch(self) -> type[WaitingConsumer]:
        """Return a consumer class whose polls are written down here."""
        polls = self

        class Watched(WaitingConsumer):
            @override
            async def getmany(
                self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
            ) -> dict[TopicPartition, list[Record]]:
                polls.begun += 1
                asyncio.get_running_loop().call_later(5 * timeout_ms / 1000, polls.several_timeouts.set)
                records = await super().getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
                polls.returned.append(sum(map(len, records.values())))
                return records

        return Watched


async def test_records_are_handed_over_as_they_are(lab: KafkaLab) -> None:
    topic, recorder = await lab.topic(), Recorder()
    headers: tuple[tuple[str, Any], ...] = (
        ("attempt", b"1"),
        ("anything", b"\xff\xfe\x00"),
        ("null", None),
        ("attempt", b"2"),
    )
    await lab.send(topic.name, b"\xff{not json", key=b"\x80key", headers=headers)
    await lab.send(topic.name, None, key=None)
    async with lab.consuming(topic, recorder):
        await recorder.has(2)
    first, second = recorder.records
    assert (first.key, first.value, tuple(first.headers)) == (b"\x80key", b"\xff{not json", headers)
    assert (first.topic, first.partition, first.offset) == (topic.name, 0, 0)
    assert (second.key, second.value, tuple(second.headers)) == (None, None, ())


async def test_a_header_that_is_no_utf_8_does_not_stop_its_partition_nor_get_its_record_skipped(lab: KafkaLab) -> None:
    topic, recorder = await lab.topic(), Recorder()
    recorder.fails = (b"bad",)
    async with lab.consuming(topic, recorder, max_records=1):
        await lab.send(topic.name, b"bad", headers=[("h", b"\xff")])
        await lab.send(topic.name, b"good", headers=[("h", b"\xff")])
        await eventually(lambda: _assert_at_least(recorder.batches, 3))
        assert recorder.batches == [[b"bad"]] * len(recorder.batches)  # the handler raises, so it stays in front
        recorder.fails = ()
        await recorder.has(2)
    assert recorder.values == [b"bad", b"good"]
    assert await lab.committed(topic) == {0: 2}


async def test_a_failed_batch_comes_again_whole_and_nothing_of_any_partition_is_skipped(lab: KafkaLab) -> None:
    topic, recorder = await lab.topic(partitions=3), Recorder()
    sent = [f"{partition}.{n}".encode() for n in range(4) for partition in range(3)]
    for value in sent:
        await lab.send(topic.name, value, partition=int(value[:1]))
    recorder.fails = [b"1.2"]
    async with lab.consuming(topic, recorder):
        await eventually(lambda: _assert_at_least([b for b in recorder.batches if b"1.2" in b], 3))
        assert (await lab.committed(topic)).get(1, 0) <= 2
        recorder.fails = ()
        await recorder.has(12)
    assert sorted(filter(None, recorder.values)) == sorted(sent)
    for partition in range(3):
        offsets = [record.offset for record in recorder.records if record.partition == partition]
        assert offsets == [0, 1, 2, 3]
    assert await lab.committed(topic) == {0: 4, 1: 4, 2: 4}


async def test_what_was_handled_is_committed_and_not_given_to_the_next_member(lab: KafkaLab) -> None:
    topic, first, second = await lab.topic(partitions=2), Recorder(), Recorder()
    for n in range(4):
        await lab.send(topic.name, b"%d" % n, partition=n % 2)
    async with lab.consuming(topic, first):
        await first.has(4)
    assert await lab.committed(topic) == {0: 2, 1: 2}
    async with lab.consuming(topic, second):
        await lab.send(topic.name, b"new", partition=0)
        await lab.send(topic.name, b"new too", partition=1)
        await second.has(2)
    assert sorted(filter(None, second.values)) == [b"new", b"new too"]


async def test_a_batch_is_not_committed_before_its_handler_has_returned(lab: KafkaLab) -> None:
    topic, recorder = await lab.topic(), Recorder()
    recorder.may_go_on.clear()
    await lab.send(topic.name, b"slow")
    async with lab.consuming(topic, recorder):
        await before_long(recorder.entered.wait())
        assert await lab.committed(topic) == {}
        recorder.may_go_on.set()
        await eventually(lambda: _assert_committed(lab, topic, {0: 1}))


async def test_an_idle_subscriber_is_always_in_a_poll_which_a_record_ends_at_once(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "POLL_TIMEOUT", timedelta(milliseconds=20))
    topic, recorder, polls = await lab.topic(), Recorder(), Polls()
    monkeypatch.setattr(broker_module, "WaitingConsumer", polls.watch())
    async with lab.consuming(topic, recorder):
        await before_long(polls.several_timeouts.wait())
        assert (polls.begun, polls.returned) == (1, [])
        await lab.send(topic.name, b"at last")
        await recorder.has(1)
    assert polls.returned == [1]


async def test_a_stop_lets_the_batch_in_flight_finish_and_commits_it(lab: KafkaLab) -> None:
    topic, recorder, successor = await lab.topic(), Recorder(), Recorder()
    recorder.may_go_on.clear()
    await lab.send(topic.name, b"in flight")
    async with lab.consuming(topic, recorder) as broker:
        await before_long(recorder.entered.wait())
        stopping = asyncio.create_task(broker.stop())
        await lab.send(topic.name, b"after the stop")
        assert not stopping.done()
        assert recorder.running == 1
        recorder.may_go_on.set()
        await before_long(stopping)
    assert recorder.values == [b"in flight"]
    assert await lab.committed(topic) == {0: 1}
    async with lab.consuming(topic, successor):
        await successor.has(1)
    assert successor.values == [b"after the stop"]


async def test_a_batch_that_outlasts_the_patience_of_a_stop_is_canceled_and_left_to_the_next_member(
    lab: KafkaLab,
) -> None:
    topic, stuck, successor = await lab.topic(), Recorder(), Recorder()
    stuck.may_go_on.clear()
    await lab.send(topic.name, b"too slow")
    async with lab.consuming(topic, stuck, grace_period=timedelta(milliseconds=200)):
        await before_long(stuck.entered.wait())
    assert (stuck.running, stuck.values) == (0, [])
    assert await lab.committed(topic) == {}
    async with lab.consuming(topic, successor):
        await successor.has(1)
    assert successor.values == [b"too slow"]


async def test_a_cancellation_that_leaks_out_of_a_handler_does_not_end_its_consumer(lab: KafkaLab) -> None:
    topic, recorder = await lab.topic(), Recorder()
    leaks = True

    async def consume(records: tuple[Record, ...]) -> None:
        nonlocal leaks
        if leaks:
            leaks = False
            canceled = asyncio.get_running_loop().create_future()
            canceled.cancel()
            await canceled
        await recorder(records)

    await lab.send(topic.name, b"once more")
    async with lab.consuming(topic, consume):
        await recorder.has(1)
        await eventually(lambda: _assert_committed(lab, topic, {0: 1}))
    assert recorder.values == [b"once more"]


async def test_a_stop_waits_for_the_clean_up_of_what_it_cancels(lab: KafkaLab) -> None:
    topic, entered, cleaned_up = await lab.topic(), asyncio.Event(), asyncio.Event()

    async def consume(_: tuple[Record, ...]) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)  # longer than the consumer itself takes to stop
            cleaned_up.set()

    await lab.send(topic.name, b"too slow")
    async with lab.consuming(topic, consume, grace_period=timedelta(milliseconds=50)) as broker:
        await before_long(entered.wait())
        await broker.stop()
        assert cleaned_up.is_set()


async def test_a_member_that_joins_gets_nothing_that_another_is_about_to_finish(lab: KafkaLab) -> None:
    topic, first, second = await lab.topic(partitions=2), Recorder(), Recorder()
    first.may_go_on.clear()
    for partition in range(2):
        await lab.send(topic.name, b"in hand", partition=partition)
    async with lab.consuming(topic, first) as old:
        await before_long(first.entered.wait())
        new = Broker(lab.settings)
        subscribe(new, topic, second, max_records=10)
        joining = asyncio.create_task(new.start())
        try:
            await eventually(lambda: _assert_being_revoked(old))
            first.may_go_on.set()
            await joining
            await eventually(lambda: _assert_shared(old, new))
            for partition in range(2):
                await lab.send(topic.name, b"new", partition=partition)
            await eventually(lambda: _assert_committed(lab, topic, {0: 2, 1: 2}))
        finally:
            await new.stop()
    assert sorted(filter(None, [*first.values, *second.values])) == [b"in hand", b"in hand", b"new", b"new"]


async def test_an_idle_subscriber_stops_without_waiting_out_its_patience(lab: KafkaLab) -> None:
    topic = await lab.topic()
    async with lab.consuming(topic, Recorder()) as broker:
        await before_long(broker.stop(), broker_module.GRACE_PERIOD / 2)


async def test_without_a_group_every_process_gets_what_comes_from_now_on(lab: KafkaLab) -> None:
    topic, first, second = await lab.topic(partitions=2, group=False), Recorder(), Recorder()
    await lab.send(topic.name, b"old", partition=0)
    async with lab.consuming(topic, first), lab.consuming(topic, second):
        for n in range(4):
            await lab.send(topic.name, b"%d" % n, partition=n % 2)
        await first.has(4)
        await second.has(4)
    for recorder in (first, second):
        assert sorted(filter(None, recorder.values)) == [b"0", b"1", b"2", b"3"]


async def test_without_a_group_a_batch_that_fails_is_not_repeated(lab: KafkaLab) -> None:
    topic, recorder = await lab.topic(group=False), Recorder()
    recorder.fails = (b"bad",)
    async with lab.consuming(topic, recorder, max_records=1):
        await lab.send(topic.name, b"bad")
        await lab.send(topic.name, b"good")
        await recorder.has(1)
    assert recorder.batches == [[b"bad"], [b"good"]]


async def test_a_member_is_settled_once_it_has_joined_its_group_also_as_a_spare(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    # FastStream reminds of a spare after two minutes, and does not take that back when it is stopped.
    monkeypatch.setattr(_LoggingListener, "_log_unassigned_consumer_delay_seconds", 0)
    topic = await lab.topic(partitions=1)
    brokers = [Broker(lab.settings), Broker(lab.settings)]
    subscriptions = [subscribe(broker, topic, Recorder(), max_records=1) for broker in brokers]
    assert [each.problem() for each in subscriptions] == ["not a member of its consumer group yet"] * 2
    try:
        for broker in brokers:
            await broker.start()
        await eventually(lambda: _assert_settled(subscriptions))
        assert sorted(len(consumer_of(broker).assignment()) for broker in brokers) == [0, 1]
    finally:
        for broker in brokers:
            await broker.stop()


async def _assert_at_least(things: Sequence[object], count: int) -> None:
    assert len(things) >= count


async def _assert_committed(lab: KafkaLab, topic: Topic, offsets: dict[int, int]) -> None:
    assert await lab.committed(topic) == offsets


async def _assert_settled(subscriptions: Sequence[Subscription]) -> None:
    assert [each.problem() for each in subscriptions] == [None] * len(subscriptions)


async def _assert_being_revoked(broker: Broker) -> None:
    assert consumer_of(broker)._subscription.reassignment_in_progress


async def _assert_shared(*brokers: Broker) -> None:
    assert [len(consumer_of(broker).assignment()) for broker in brokers] == [1, 1]
