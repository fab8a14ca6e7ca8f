"""Brings records from the retry topics back to where they failed, when they are due and never before.

A retry topic holds records of one delay, so the one at the head of a partition is the one due first. Until then the
partition is paused and its position put back to that record; nothing sleeps, so the consumer stays a live member of
its group and the other partitions go on. A record is published before its offset is committed: a crash in between
brings it back twice, which the stages bear. After a rebalance the new owner looks at the due time again.

A provider's wish to be asked later than its topic's delay holds up the records behind it, for the same provider would
refuse those as well.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from typing_extensions import override

from shared.broker import Record
from shared.clock import Clock, now
from shared.kafka import Outgoing, Publisher, client_options
from shared.periodic import periodically
from shared.retry import attempt_of
from shared.settings import KafkaSettings
from shared.topics import Topic

LOOK_INTERVAL = timedelta(seconds=0.5)
"""The longest that a due record waits for being looked at, while none arrives."""

RESTART_PAUSE = timedelta(seconds=5)
"""After a failure, such as a broker that is away; retries wait for a minute and more anyway."""

logger = structlog.stdlib.get_logger()


class Relay(ConsumerRebalanceListener):
    """Relays the retry topics of the topics that one service works on.

    Parameters
    ----------
    topics
        The service's topics.
    name
        The service's name, from which the consumer group's is made.
    """

    def __init__(
        self, topics: Sequence[Topic], name: str, settings: KafkaSettings, publisher: Publisher, clock: Clock = now
    ) -> None:
        self._origins = {
            topic.retry(delay): topic for topic in topics for delay in settings.retry_delays if topic.retried
        }
        self._group = f"{name}.relay"
        self._settings = settings
        self._publisher = publisher
        self._clock = clock
        self._paused: dict[TopicPartition, datetime] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Relay in the background while the context is open."""
        if not self._origins:
            yield
            return
        async with periodically(RESTART_PAUSE, self._run):
            yield

    async def _run(self) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        consumer.subscribe(list(self._origins), listener=self)
        await consumer.start()
        try:
            while True:
                self._resume_due(consumer)
                batches = await consumer.getmany(timeout_ms=int(LOOK_INTERVAL.total_seconds() * 1000))
                for partition, records in batches.items():
                    await self._relay(consumer, partition, records)
        finally:
            self._paused.clear()
            await consumer.stop()

    async def _relay(self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: Sequence[Record]) -> None:
        """Bring back the due records of a partition, and wait for the first that is not."""
        due = list(takewhile(lambda record: due_at(record) <= self._clock(), records))
        head = records[len(due)] if len(due) < len(records) else None
        await self._publisher.publish(map(self._returned, due))
        try:
            if due:
                await consumer.commit({partition: due[-1].offset + 1})
            if head is not None:
                consumer.pause(partition)
                consumer.seek(partition, head.offset)
                self._paused[partition] = due_at(head)
        except (CommitFailedError, IllegalStateError) as error:  # a rebalance took the partition away meanwhile
            logger.info(
                "relay lost a partition", topic=partition.topic, partition=partition.partition, error=str(error)
            )

    def _returned(self, record: Record) -> Outgoing:
        headers = [(name, value) for name, value in record.headers if name != "attempt"]
        headers.append(("attempt", str(attempt_of(record) + 1).encode()))
        return Outgoing(self._origins[record.topic].name, record.key, record.value, headers)

    def _resume_due(self, consumer: AIOKafkaConsumer) -> None:
        for partition, due in list(self._paused.items()):
            if due <= self._clock():
                del self._paused[partition]
                consumer.resume(partition)

    @override
    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        for partition in revoked:
            self._paused.pop(partition, None)

    @override
    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        pass  # none of them is paused: their heads are looked at with the next fetch


def due_at(record: Record) -> datetime:
    """Return when a record is due; at once where its header makes no sense."""
    text = dict(record.headers).get("due-at") or b""  # Kafka has headers without a value, too
    try:
        due = datetime.fromisoformat(text.decode())
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return due if due.tzinfo else due.replace(tzinfo=UTC)
