"""How old the oldest record is that some consumer has yet to finish."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from shared.errors import DependencyUnavailableError
from shared.kafka import client_options
from shared.settings import KafkaSettings
from shared.topics import TASK_EVENTS, TOPICS

LOOK_TIMEOUT = timedelta(seconds=30)
"""The longest that a look may take; then the broker counts as away, or the tracker as too busy to judge anything."""

FETCH_TIMEOUT_MS = 5_000
"""The longest wait for the record at the head of a partition; one that cannot be had makes the look fail."""

POLL = timedelta(seconds=0.2)
"""Between two looks at whether the reports are folded."""

NOTHING = datetime.max.replace(tzinfo=UTC)
"""The age of an empty backlog: whatever is older than it, all of it is."""

Offsets = Mapping[TopicPartition, int]


def consumers(settings: KafkaSettings) -> dict[str, str]:
    """Return each topic that carries work or reports, retry topics included, with the group that works through it."""
    groups: dict[str, str] = {}
    for topic in TOPICS:
        if topic.group is not None:
            groups[topic.name] = topic.group
            if topic.retried:
                groups |= {topic.retry(delay): topic.relay_group for delay in settings.retry_delays}
    return groups


async def oldest_waiting(settings: KafkaSettings) -> datetime:
    """Return when the oldest record was written that its group has not finished; `NOTHING` where none waits.

    A record that is being worked on counts as waiting, for its offset is not committed, and so does one that waits for
    its retry. When this returns, all reports of what is finished have been folded. So a task whose row is older than
    the answer has no record left anywhere: work is published together with the report that moves the row.

    The order of the looks matters, for work moves on meanwhile: what is committed first, the ends of the topics then.
    The other way round a record could pass unseen from a topic that is looked at later into one that was before.

    Raises
    ------
    DependencyUnavailableError
        The broker does not answer or lacks a topic, or the reports are not folded in time.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    try:
        async with asyncio.timeout(LOOK_TIMEOUT.total_seconds()):
            await admin.start()
            await consumer.start()
            heads, ends = await _unfinished(consumers(settings), admin, consumer)
            oldest = await _oldest(consumer, heads)
            await _folded(admin, ends)
            return oldest
    except (KafkaError, TimeoutError, OSError) as error:
        raise DependencyUnavailableError(f"Kafka's backlog cannot be told: {error!r}") from error
    finally:
        await consumer.stop()
        await admin.close()


async def _unfinished(
    groups: Mapping[str, str], admin: AIOKafkaAdminClient, consumer: AIOKafkaConsumer
) -> tuple[Offsets, Offsets]:
    """Return the first unfinished record of each partition of work that has one, and the ends of the reports."""
    described = await admin.describe_topics(list(groups))
    partitions = [TopicPartition(t["topic"], p["partition"]) for t in described for p in t["partitions"]]
    if missing := groups.keys() - {partition.topic for partition in partitions}:
        raise UnknownTopicOrPartitionError(f"{', '.join(sorted(missing))}: run `paperlane migrate`")
    consumer.assign(partitions)  # by which its client learns of all topics at once, rather than 0.1 s each
    beginnings: Offsets = await consumer.beginning_offsets(partitions)
    committed = {group: await _committed(admin, group) for group in set(groups.values())}
    ends: Offsets = await consumer.end_offsets(partitions)
    heads = {tp: max(committed[groups[tp.topic]].get(tp, 0), beginnings[tp]) for tp in partitions}
    return (
        {tp: head for tp, head in heads.items() if head < ends[tp] and tp.topic != TASK_EVENTS.name},
        {tp: end for tp, end in ends.items() if tp.topic == TASK_EVENTS.name and end > beginnings[tp]},
    )


async def _committed(admin: AIOKafkaAdminClient, group: str) -> Offsets:
    return {tp: offset.offset for tp, offset in (await admin.list_consumer_group_offsets(group)).items()}


async def _oldest(consumer: AIOKafkaConsumer, heads: Offsets) -> datetime:
    consumer.assign(list(heads))
    for partition, offset in heads.items():
        consumer.seek(partition, offset)
    oldest = NOTHING
    for partition in heads:
        found = await consumer.getmany(partition, timeout_ms=FETCH_TIMEOUT_MS, max_records=1)
        if not found.get(partition):
            raise TimeoutError(f"no record at {heads[partition]} of {partition}")
        oldest = min(oldest, datetime.fromtimestamp(found[partition][0].timestamp / 1000, UTC))
    return oldest


async def _folded(admin: AIOKafkaAdminClient, ends: Offsets) -> None:
    """Wait until the tracker has folded the reports up to `ends`."""
    group = TASK_EVENTS.group or ""
    while True:
        committed = await _committed(admin, group)
        if all(committed.get(partition, 0) >= end for partition, end in ends.items()):
            return
        await asyncio.sleep(POLL.total_seconds())
