"""What lies in Kafka: all records of topics, and what its consumers have still to do."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from shared.broker import Record
from shared.topics import TASK_UPDATES

FETCH_WAIT = timedelta(milliseconds=500)
"""How long one look at a topic waits for records; a topic with records answers at once."""


async def read_topics(servers: str, topics: Iterable[str]) -> dict[str, list[Record]]:
    """Return all records of topics from their beginning to their present end."""
    found: dict[str, list[Record]] = {topic: [] for topic in topics}
    async with _admin(servers) as admin:
        partitions = [partition for partition in await _partitions(admin) if partition.topic in found]
    async with _reader(servers, partitions) as reader:
        await reader.seek_to_beginning()
        ends = await reader.end_offsets(partitions)
        unread = {partition for partition in partitions if ends[partition] > 0}
        while unread:
            batches = await reader.getmany(timeout_ms=int(FETCH_WAIT.total_seconds() * 1000))
            for partition, records in batches.items():
                found[partition.topic] += (record for record in records if record.offset < ends[partition])
            unread = {p for p in unread if await reader.position(p) < ends[p]}
    return found


async def lags(servers: str) -> Mapping[TopicPartition, int]:
    """Return how many records of each partition nobody is through with, where there are any.

    Every topic but the updates and the dead letters has one group that works through it; the relays' are among them.
    """
    async with _admin(servers) as admin:
        committed = await _committed(admin)
        partitions = await _partitions(admin)
    worked = [p for p in partitions if p.topic != TASK_UPDATES.name and not p.topic.endswith(".dlq")]
    async with _reader(servers, worked) as reader:
        ends = await reader.end_offsets(worked)
    return {partition: end - committed[partition] for partition, end in ends.items() if end > committed[partition]}


async def _committed(admin: AIOKafkaAdminClient) -> defaultdict[TopicPartition, int]:
    committed: defaultdict[TopicPartition, int] = defaultdict(int)
    for group, *_ in await admin.list_consumer_groups():
        for partition, position in (await admin.list_consumer_group_offsets(group)).items():
            committed[partition] = max(committed[partition], position.offset)
    return committed


async def _partitions(admin: AIOKafkaAdminClient) -> list[TopicPartition]:
    """Return all partitions but those of Kafka's own topics."""
    topics = [topic for topic in await admin.describe_topics() if not topic["topic"].startswith("__")]
    return [TopicPartition(topic["topic"], p["partition"]) for topic in topics for p in topic["partitions"]]


@asynccontextmanager
async def _admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def _reader(servers: str, partitions: Sequence[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
    reader = AIOKafkaConsumer(bootstrap_servers=servers)
    await reader.start()
    try:
        reader.assign(partitions)
        yield reader
    finally:
        await reader.stop()
