"""Reads dead letters, and makes of one the record again that it was.

A dead-letter topic is a log: what was replayed stays in it until Kafka deletes it. Of units of work the task's status
tells whether they are still open. For other records a note follows in the same topic, a record without a value that
names the dead letter which was replayed, so that it is known for as long as the dead letter itself.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Self
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from shared.broker import Record
from shared.errors import DependencyUnavailableError
from shared.events import DeadLetter
from shared.kafka import Outgoing, client_options
from shared.reports import Unit
from shared.retry import run_of, without_failure
from shared.settings import KafkaSettings
from shared.topics import TOPICS

ORIGINS = {topic.dead_letters: topic for topic in TOPICS if topic.group}

NOTE = "replayed"
"""The header of a note: partition and offset of the dead letter that was replayed."""

FETCH_WAIT_MS = 10
"""How long the broker may hold back a fetch while there is nothing more: whatever else is asked waits behind it."""

READ_TIMEOUT_MS = 10_000
"""The longest that one dead letter may take to be read; a broker that is well needs milliseconds."""


class DeadLetters:
    """A context with a consumer that reads dead letters, for one reader at a time."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.kafka_bootstrap_servers
        self._consumer = AIOKafkaConsumer(
            **client_options(settings), enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS
        )
        self._known: dict[str, list[TopicPartition]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self._consumer.stop()
            raise DependencyUnavailableError(
                f"no Kafka broker answers at {self._servers}: check KAFKA_BOOTSTRAP_SERVERS"
            ) from error
        await asyncio.sleep(0)  # lets the consumer's tasks begin: stopping one before that raises CancelledError
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def read(self, position: DeadLetter) -> Record | None:
        """Return what lies at a position; None where Kafka has deleted it since, or never had it.

        Raises
        ------
        DependencyUnavailableError
            The broker does not answer.
        """
        partition = TopicPartition(position.topic, position.partition)
        try:
            if partition not in await self._partitions(position.topic):
                return None
            beginning, end = await self._bounds(partition)
            if not beginning <= position.offset < end:
                return None
            self._consumer.assign([partition])
            self._consumer.seek(partition, position.offset)
            found = await self._consumer.getmany(partition, timeout_ms=READ_TIMEOUT_MS, max_records=1)
        except KafkaError as error:
            raise DependencyUnavailableError(f"the dead letter cannot be read: {error!r}") from error
        records: list[Record] = found.get(partition, [])
        if not records:
            raise DependencyUnavailableError("the dead letter was not delivered in time")
        return records[0] if records[0].offset == position.offset else None

    async def walk(self, topic: str, newest: int | None = None) -> AsyncIterator[Record]:
        """Yield what a dead-letter topic holds now, partition by partition, oldest first; notes are among it.

        Parameters
        ----------
        newest
            How many records of the end of each partition; all where it is None.

        Raises
        ------
        DependencyUnavailableError
            The broker does not answer, or has no such topic.
        """
        try:
            partitions = await self._partitions(topic)
            if not partitions:
                raise DependencyUnavailableError(f"the broker has no topic {topic}: run `paperlane migrate`")
            for partition in partitions:
                beginning, end = await self._bounds(partition)
                start = beginning if newest is None else max(beginning, end - newest)
                if start == end:
                    continue  # a consumer that is stopped right after an assignment may hang
                self._consumer.assign([partition])
                self._consumer.seek(partition, start)
                while await self._consumer.position(partition) < end:
                    found = await self._consumer.getmany(partition, timeout_ms=READ_TIMEOUT_MS)
                    if not found:
                        raise DependencyUnavailableError("the dead letters were not delivered in time")
                    for record in found[partition]:
                        if record.offset < end:
                            yield record
        except KafkaError as error:
            raise DependencyUnavailableError(f"the dead letters cannot be read: {error!r}") from error

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        """Return the partitions of a dead-letter topic, none where it is no such topic; asking for them would hang."""
        if topic not in self._known and topic in ORIGINS and topic in await self._consumer.topics():
            await self._bounds(TopicPartition(topic, 0))  # by which the client gets to know the others
            numbers = sorted(self._consumer.partitions_for_topic(topic) or ())
            self._known[topic] = [TopicPartition(topic, number) for number in numbers]
        return self._known.get(topic, [])

    async def _bounds(self, partition: TopicPartition) -> tuple[int, int]:
        beginnings = await self._consumer.beginning_offsets([partition])
        ends = await self._consumer.end_offsets([partition])
        return beginnings[partition], ends[partition]


def replayed(record: Record, run: int) -> Outgoing:
    """Return what publishes a dead letter anew: the original key, bytes and foreign headers, as a first attempt.

    Parameters
    ----------
    run
        How often its unit has been replayed, this time included.
    """
    headers = [*without_failure(record.headers, "run"), ("run", str(run).encode())]
    return Outgoing(ORIGINS[record.topic].name, record.key, record.value, headers)


def task_of(record: Record) -> UUID | None:
    """Return the task to replay for a dead letter; None where it is none of a task's units, or does not tell."""
    unit = Unit.named_by(record.key) if ORIGINS[record.topic].step else None
    return unit.task_id if unit else None


def replayed_alone(record: Record) -> list[Outgoing]:
    """Return what publishes a dead letter anew that no task stands for, and the note that it was."""
    note = Outgoing(record.topic, record.key or b"", None, [(NOTE, b"%d:%d" % (record.partition, record.offset))])
    return [replayed(record, run_of(record) + 1), note]


def noted(record: Record) -> DeadLetter | None:
    """Return where the dead letter lies that a note says was replayed; None where a record is no note."""
    match record.headers:
        case [(name, bytes(position))] if name == NOTE:  # a dead letter has more headers, whatever else they say
            partition, offset = map(int, position.split(b":"))
            return DeadLetter(topic=record.topic, partition=partition, offset=offset)
        case _:
            return None
