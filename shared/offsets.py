"""Asks the broker how much work waits, by clients of its own: those that work may be what does not answer."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from shared.kafka import client_options
from shared.settings import KafkaSettings


class Offsets:
    """Where the partitions end, and how far their groups have come."""

    def __init__(self, admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer) -> None:
        self._admin = admin
        self._consumer = consumer

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: KafkaSettings) -> AsyncIterator[Self]:
        """Connect, and disconnect at the end; a connection that breaks meanwhile is made anew.

        Raises
        ------
        KafkaError
            The broker does not answer.
        """
        admin = AIOKafkaAdminClient(**client_options(settings))
        consumer = AIOKafkaConsumer(**client_options(settings))  # without topics: it only asks for offsets
        try:
            await admin.start()
            await consumer.start()
            yield cls(admin, consumer)
        finally:
            await consumer.stop()
            await admin.close()

    async def waiting(self, group: str, partitions: Collection[TopicPartition]) -> int:
        """Return how many records of some partitions a group has not committed yet, of those that still exist.

        Raises
        ------
        KafkaError
            The broker does not answer, or refuses to.
        """
        offsets = await self._admin.list_consumer_group_offsets(group)
        if not partitions:
            return 0
        begins = await self._consumer.beginning_offsets(list(partitions))
        ends = await self._consumer.end_offsets(list(partitions))
        next_offsets = {each: max(offsets[each].offset if each in offsets else 0, begins[each]) for each in partitions}
        return sum(max(ends[each] - offset, 0) for each, offset in next_offsets.items())
