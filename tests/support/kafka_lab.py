"""Topics of a test's own, and plain Kafka clients that look at them from outside."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError
from faststream.kafka.subscriber.usecase import LogicSubscriber

from services.tracker.backlog import consumers
from shared.breaker import Breaker
from shared.broker import GRACE_PERIOD, Broker, Consume, Record, subscribe
from shared.events import Stage, Step
from shared.kafka import client_options
from shared.settings import KafkaSettings
from shared.topics import Topic, with_side_topics
from tests.support.eventually import PATIENCE, eventually

FETCH_WAIT = timedelta(milliseconds=200)
"""How long one look at a topic waits for records; a topic with records answers at once."""

Ends = Mapping[TopicPartition, int]


class KafkaLab:
    """A context with a producer and an admin client, for one test."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._options = client_options(settings)
        self._producer = AIOKafkaProducer(**self._options)
        self._admin = AIOKafkaAdminClient(**self._options)

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._admin.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()
        await self._admin.close()

    async def topic(self, *, partitions: int = 1, group: bool = True, step: Step | None = None) -> Topic:
        """Create a topic that nobody else uses, with its retry and dead-letter topics."""
        name = f"test-{uuid4()}"
        topic = Topic(name, Stage.EMBED, f"{name}.group" if group else None, step=step)
        settings = self.settings.model_copy(update={"topic_partitions": partitions})
        await self._admin.create_topics(list(with_side_topics(topic, settings)))
        return topic

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, Any]] = (),
        partition: int | None = None,
        at: datetime | None = None,
    ) -> int:
        """Write a record, now or as if at another time, and return its offset."""
        if key is None and value is None:
            return await self._send_nothing(topic, list(headers), partition or 0)
        timestamp = at and int(at.timestamp() * 1000)
        written = await self._producer.send_and_wait(topic, value, key, partition, timestamp, list(headers))
        return int(written.offset)

    async def send_large(self, topic: str, value: bytes, *, key: bytes, headers: Sequence[tuple[str, Any]] = ()) -> int:
        """Write a record of any size, which the broker takes or refuses, and return its offset."""
        async with AIOKafkaProducer(**self._options, max_request_size=2 * len(value)) as producer:
            return int((await producer.send_and_wait(topic, value, key=key, headers=list(headers))).offset)

    async def send_beyond_limit(self, topic: str, value: bytes, *, key: bytes) -> int:
        """Have a topic take records as large as this one, write it, and return its offset."""
        limit = {"max.message.bytes": str(2 * len(value))}
        answers: list[Any] = await self._admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, limit)])
        assert not answers[0].resources[0][0], answers

        async def taken() -> int:  # the broker applies a setting some time after it has acknowledged it
            try:
                return await self.send_large(topic, value, key=key)
            except MessageSizeTooLargeError as error:
                raise AssertionError(topic) from error

        return await eventually(taken)

    async def _send_nothing(self, topic: str, headers: list[tuple[str, Any]], partition: int) -> int:
        """Write a record without key and value, which other clients may do; this one's own `send` refuses to."""
        await self._producer.partitions_for(topic)
        to, patience = TopicPartition(topic, partition), PATIENCE.total_seconds()
        acknowledged = await self._producer._message_accumulator.add_message(to, None, None, patience, headers=headers)
        return int((await acknowledged).offset)

    async def partitions(self, *topics: str) -> list[TopicPartition]:
        """Return the partitions of topics."""
        described = await self._admin.describe_topics(list(topics))
        return sorted(
            TopicPartition(topic["topic"], each["partition"]) for topic in described for each in topic["partitions"]
        )

    async def ends(self, topic: str) -> Ends:
        """Return where each partition of a topic ends now."""
        async with self._reader(topic) as (reader, partitions):
            return dict(await reader.end_offsets(partitions))

    async def read(self, topic: str, count: int, *, since: Ends | None = None) -> list[Record]:
        """Return the records of a topic, all or those since `since`, in order of their partitions and offsets.

        It waits until there are `count` of them; more are an error.
        """
        found: list[Record] = []
        async with self._reader(topic) as (reader, partitions), asyncio.timeout(PATIENCE.total_seconds()):
            for partition in partitions:
                reader.seek(partition, since[partition] if since else 0)
            while len(found) < count or await self._unread(reader, partitions):
                batch = await reader.getmany(timeout_ms=int(FETCH_WAIT.total_seconds() * 1000))
                found += [record for records in batch.values() for record in records]
        assert len(found) == count, [record.value for record in found]
        return sorted(found, key=lambda record: (record.partition, record.offset))

    async def committed(self, topic: Topic) -> dict[int, int]:
        """Return the offsets that the topic's group has committed, by partition; none where that is the beginning."""
        assert topic.group
        offsets = await self._admin.list_consumer_group_offsets(topic.group)
        return {partition.partition: offset.offset for partition, offset in offsets.items() if offset.offset > 0}

    async def members(self, topic: Topic) -> int:
        """Return how many members the topic's group has."""
        assert topic.group
        answers: list[Any] = await self._admin.describe_consumer_groups([topic.group])
        _error, _id, _state, _protocol_type, _protocol, members, *_ = answers[0].groups[0]
        return len(members)

    async def catch_up(self, topic: Topic) -> None:
        """Commit for the topic's group, which must have no members, that it is through with all records."""
        await self._pass_over(topic.group, [topic.name])

    async def catch_up_everywhere(self) -> None:
        """Commit for all groups, those of the relays too, none of which has members, that nothing waits for them."""
        topics = consumers(self.settings)
        for group in set(topics.values()):
            await self._pass_over(group, [topic for topic, its_group in topics.items() if its_group == group])

    async def _pass_over(self, group: str | None, topics: Sequence[str]) -> None:
        consumer = AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **self._options)
        await consumer.start()
        try:
            partitions = await self.partitions(*topics)
            consumer.assign(partitions)
            await consumer.commit(dict(await consumer.end_offsets(partitions)))
        finally:
            await consumer.stop()

    @asynccontextmanager
    async def consuming(
        self,
        topic: Topic,
        consume: Consume,
        *,
        max_records: int = 100,
        grace_period: timedelta = GRACE_PERIOD,
        breaker: Breaker | None = None,
    ) -> AsyncIterator[Broker]:
        """Consume with a broker that has its partitions and knows its position in each; stop it at the end."""
        broker = Broker(self.settings, grace_period=grace_period)
        subscribe(broker, topic, consume, max_records=max_records, breaker=breaker)
        await broker.start()
        try:
            await eventually(lambda: _in_position(broker))
            yield broker
        finally:
            await broker.stop()

    @asynccontextmanager
    async def _reader(self, topic: str) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
        reader = AIOKafkaConsumer(**self._options)
        await reader.start()
        try:
            partitions = await self.partitions(topic)
            reader.assign(partitions)
            yield reader, partitions
        finally:
            await reader.stop()

    async def _unread(self, reader: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> bool:
        ends = await reader.end_offsets(partitions)
        return any([await reader.position(partition) < ends[partition] for partition in partitions])


def consumer_of(broker: Broker) -> AIOKafkaConsumer:
    """Return the consumer of a broker's only subscription."""
    (subscriber,) = broker.subscribers
    assert isinstance(subscriber, LogicSubscriber)
    assert subscriber.consumer is not None
    return subscriber.consumer


async def _in_position(broker: Broker) -> None:
    consumer = consumer_of(broker)
    assigned = consumer.assignment()
    assert assigned
    for partition in assigned:
        await consumer.position(partition)
