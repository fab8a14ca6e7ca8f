"""Brings records from the retry topics back to where they failed, when they are due and never before.

A retry topic holds records of one delay, so the one at the head of a partition is the one due first, or nearly so.
Until then the partition is paused and its position put back to that record; nothing sleeps, so the consumer stays a
live member of its group and the other partitions go on. A record is published before its offset is committed: a crash
in between brings it back twice, which the stages bear. After a rebalance the new owner looks at the due time again.

A record whose provider wants to be asked much later must not hold up those behind it: as long as it is due later than
its topic's delay from now, it goes to the tail, once for each delay that passes. So the others wait behind it for one
delay at most. When the clock jumps, every record is looked at anew, by the new time.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from typing_extensions import override

from shared.broker import Record
from shared.clock import Clock, now
from shared.errors import RecordTooLargeError
from shared.kafka import Outgoing, Publisher, client_options
from shared.periodic import periodically
from shared.retry import attempt_of, route
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
        The service's topics, at least one.
    """

    def __init__(
        self, topics: Sequence[Topic], settings: KafkaSettings, publisher: Publisher, clock: Clock = now
    ) -> None:
        self._sources = {
            topic.retry(delay): (topic, delay) for topic in topics for delay in settings.retry_delays if topic.retried
        }
        self._group = topics[0].relay_group
        self._settings = settings
        self._publisher = publisher
        self._clock = clock
        self._at_work = asyncio.Lock()
        self._paused: dict[TopicPartition, tuple[datetime, datetime]] = {}  # since when, and until when

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Relay in the background while the context is open."""
        if not self._sources:
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
        consumer.subscribe(list(self._sources), listener=self)
        await consumer.start()
        try:
            while True:
                self._resume_due(consumer)
                batches = await consumer.getmany(timeout_ms=int(LOOK_INTERVAL.total_seconds() * 1000))
                async with self._at_work:
                    for partition, records in batches.items():
                        await self._relay(consumer, partition, records)
        finally:
            self._paused.clear()
            await consumer.stop()

    async def _relay(self, consumer: AIOKafkaConsumer, partition: TopicPartition, records: Sequence[Record]) -> None:
        """Move the records of a partition on, and wait for the first that stays where it is."""
        now, moved = self._clock(), list[Outgoing]()
        origin, delay = self._sources[partition.topic]
        stays_until = None
        for record in records:
            stays_until = _stays_until(record, delay, now)
            if stays_until is not None:
                break
            moved.append(_back(record, origin) if due_at(record) <= now else _at_the_tail(record, now))
        await self._publish(moved, records, origin)
        try:
            if moved:
                await consumer.commit({partition: records[len(moved) - 1].offset + 1})
            if stays_until is not None:
                consumer.pause(partition)
                consumer.seek(partition, records[len(moved)].offset)
                self._paused[partition] = now, stays_until
        except (CommitFailedError, IllegalStateError) as error:  # a rebalance took the partition away meanwhile
            logger.info(
                "relay lost a partition", topic=partition.topic, partition=partition.partition, error=str(error)
            )

    async def _publish(self, moved: Sequence[Outgoing], records: Sequence[Record], origin: Topic) -> None:
        """Publish what was made of records. One that is too large to come back must not hold up the others."""
        try:
            await self._publisher.publish(moved)
        except RecordTooLargeError:
            for outgoing, record in zip(moved, records, strict=False):
                try:
                    await self._publisher.publish([outgoing])
                except RecordTooLargeError as error:
                    await self._publisher.publish([route(record, error, topic=origin, now=self._clock()).record])

    def _resume_due(self, consumer: AIOKafkaConsumer) -> None:
        for partition, (since, until) in list(self._paused.items()):
            if not since <= self._clock() < until:  # before `since` it is where the clock was put back
                del self._paused[partition]
                consumer.resume(partition)

    @override
    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        async with self._at_work:  # what is published is committed before another member looks at it
            for partition in revoked:
                self._paused.pop(partition, None)

    @override
    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        pass  # none of them is paused: their heads are looked at with the next fetch


def due_at(record: Record) -> datetime:
    """Return when a record is due; at once where its header makes no sense."""
    return _time(record, "due-at")


def _stays_until(record: Record, delay: timedelta, now: datetime) -> datetime | None:
    """Return until when a record may stay at the head of its topic; None where it must leave now."""
    due = due_at(record)
    if due <= now + delay:
        return due if due > now else None
    since = _time(record, "waits-since", "failed-at")
    return since + delay if timedelta() <= now - since < delay else None


def _back(record: Record, origin: Topic) -> Outgoing:
    headers = [(name, value) for name, value in record.headers if name != "attempt"]
    headers.append(("attempt", str(attempt_of(record) + 1).encode()))
    return Outgoing(origin.name, record.key, record.value, headers)


def _at_the_tail(record: Record, now: datetime) -> Outgoing:
    headers = [(name, value) for name, value in record.headers if name != "waits-since"]
    return Outgoing(record.topic, record.key, record.value, [*headers, ("waits-since", now.isoformat().encode())])


def _time(record: Record, *names: str) -> datetime:
    """Return the time in the first of some headers that tells one; a time long ago where none does."""
    headers = dict(record.headers)
    for name in names:
        with suppress(ValueError):
            time = datetime.fromisoformat((headers.get(name) or b"").decode())  # Kafka has headers without a value, too
            return time if time.tzinfo else time.replace(tzinfo=UTC)
    return datetime.min.replace(tzinfo=UTC)
