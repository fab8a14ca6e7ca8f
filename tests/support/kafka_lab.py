"""Topics of a test's own, and plain Kafka clients that look at them from outside."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from faststream.kafka.subscriber.usecase import LogicSubscriber

from shared.broker import Broker, Consume, Record, subscribe
from shared.events import Stage
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

    async def topic(self, *, partitions: int = 1, group: bool = True, stage: str = Stage.EMBED) -> Topic:
        """Create a topic that nobody else uses, with its retry and dead-letter topics."""
        name = f"test-{uuid4()}"
        topic = Topic(name, stage, f"{name}.group" if group else None)
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
    ) -> int:
        """Write a record and return its offset."""
        if key is None and value is None:
            return await self._send_nothing(topic, list(headers), partition or 0)
        written = await self._producer.send_and_wait(topic, value, key=key, headers=list(headers), partition=partition)
        return int(written.offset)

    async def _send_nothing(self, topic: str, headers: list[tuple[str, Any]], partition: int) -> int:
        """Write a record without key and value, which other clients may do; this one's own `send` refuses to."""
        await self._producer.partitions_for(topic)
        to, patience = TopicPartition(topic, partition), PATIENCE.total_seconds()
        acknowledged = await self._producer._message_accumulator.add_message(to, None, None, patience, headers=headers)
        return int((await acknowledged).offset)

    async def partitions(self, topic: str) -> list[TopicPartition]:
        """Return the partitions of a topic."""
        (described,) = await self._admin.describe_topics([topic])
        return sorted(TopicPartition(topic, partition["partition"]) for partition in described["partitions"])

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

    async def catch_up(self, topic: Topic) -> None:
        """Commit for the topic's group, which must have no members, that it is through with all records."""
        consumer = AIOKafkaConsumer(group_id=topic.group, enable_auto_commit=False, **self._options)
        await consumer.start()
        try:
            ends = await self.ends(topic.name)
            consumer.assign(list(ends))
            await consumer.commit(dict(ends))
        finally:
            await consumer.stop()

    @asynccontextmanager
    async def consuming(self, topic: Topic, consume: Consume, *, max_records: int = 100) -> AsyncIterator[Broker]:
        """Consume with a broker that has its partitions and knows its position in each; stop it at the end."""
        broker = Broker(self.settings)
        subscribe(broker, topic, consume, max_records=max_records)
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
