"""Looks at the consumer groups of all stages: how many members, how much work waits, whether it moves."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from shared.clock import Clock, now
from shared.errors import DependencyUnavailableError
from shared.kafka import client_options
from shared.settings import KafkaSettings
from shared.topics import TOPICS, Topic

FRESH = timedelta(seconds=1)
"""What was seen is told again for so long, failures too: a busy dashboard must not become a load on the broker."""

LOOK_INTERVAL = timedelta(seconds=10)
"""How often the groups are looked at without being asked, to know since when one stands still."""

LOOK_TIMEOUT = timedelta(seconds=5)
"""The longest that a look may take; then the broker counts as away."""

STUCK_AFTER = timedelta(minutes=6)
"""Work that waits while nothing is committed for this long is stuck; a single unit may take 5 minutes."""

UNATTENDED_AFTER = timedelta(minutes=1)
"""Work that waits for this long while nobody is there to take it up is stuck too; a restart takes seconds."""

GROUPS = tuple((topic, topic.group) for topic in TOPICS if topic.group)


@dataclass(frozen=True)
class GroupState:
    """One consumer group: its members, the records that wait for it, what it has committed.

    Attributes
    ----------
    moved_at
        When it last committed something, or nothing waited for it.
    attended_at
        When it last had members, committed something, or nothing waited for it.
    still
        Whether it has not moved for `STUCK_AFTER`, or not been attended for `UNATTENDED_AFTER`; that is over when it
        moves, not when somebody comes.
    """

    members: int
    waiting: int
    committed: int
    moved_at: datetime
    attended_at: datetime
    still: bool


@dataclass(frozen=True)
class StageState:
    """All groups of one stage together.

    Attributes
    ----------
    members
        Of the group that has fewest.
    waiting
        Records, in all groups.
    still_since
        Since when a group of it that stands still has committed nothing; None where none does.
    """

    members: int
    waiting: int
    still_since: datetime | None = None

    @property
    def stuck(self) -> bool:
        """Whether a group of it stands still."""
        return self.still_since is not None


class StageWatch:
    """Observes the stages' consumer groups."""

    def __init__(self, settings: KafkaSettings, clock: Clock = now) -> None:
        self._settings = settings
        self._clock = clock
        self._groups: dict[str, GroupState] = {}
        self._observed_at: datetime | None = None
        self._failure, self._failed_at = "", clock()
        self._lock = asyncio.Lock()
        self._clients: tuple[AIOKafkaAdminClient, AIOKafkaConsumer] | None = None

    async def observe(self) -> Mapping[str, StageState]:
        """Return the state of every stage, as of a second ago at most.

        Raises
        ------
        DependencyUnavailableError
            The broker does not answer.
        """
        async with self._lock:
            at = self._clock()
            if self._failure and at - self._failed_at < FRESH:
                raise DependencyUnavailableError(self._failure)
            if self._observed_at is None or at - self._observed_at >= FRESH:
                await self._look(at)
        return {stage: self._stage(stage) for stage in dict.fromkeys(topic.stage for topic, _ in GROUPS)}

    def _stage(self, stage: str) -> StageState:
        groups = [self._groups[topic.name] for topic, _ in GROUPS if topic.stage == stage]
        return StageState(
            members=min(group.members for group in groups),
            waiting=sum(group.waiting for group in groups),
            still_since=min((group.moved_at for group in groups if group.still), default=None),
        )

    async def _look(self, at: datetime) -> None:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT.total_seconds()):
                admin, consumer = await self._connected()
                partitions = await self._partitions(admin)
                ends = await consumer.end_offsets([tp for tps in partitions.values() for tp in tps])
                begins = await consumer.beginning_offsets(list(ends))
                for topic, group in GROUPS:
                    offsets = await admin.list_consumer_group_offsets(group)
                    committed = {
                        tp: offsets[tp].offset if tp in offsets else begins[tp] for tp in partitions[topic.name]
                    }
                    waiting = sum(max(ends[tp] - offset, 0) for tp, offset in committed.items())
                    members = await _members(admin, group)
                    self._groups[topic.name] = self._state(topic, members, waiting, sum(committed.values()), at)
        except (KafkaError, TimeoutError, OSError) as error:
            await self.aclose()
            self._failure, self._failed_at = f"the Kafka broker does not answer: {error!r}", self._clock()
            raise DependencyUnavailableError(self._failure) from error
        self._failure, self._observed_at = "", at

    async def _partitions(self, admin: AIOKafkaAdminClient) -> dict[str, list[TopicPartition]]:
        described = await admin.describe_topics([topic.name for topic, _ in GROUPS])
        return {
            topic["topic"]: [TopicPartition(topic["topic"], part["partition"]) for part in topic["partitions"]]
            for topic in described
        }

    def _state(self, topic: Topic, members: int, waiting: int, committed: int, at: datetime) -> GroupState:
        known = self._groups.get(topic.name)
        if known is None or not known.waiting or known.committed != committed:
            return GroupState(members, waiting, committed, at, at, still=False)
        attended_at = at if members else known.attended_at
        still = at - known.moved_at > STUCK_AFTER or at - attended_at > UNATTENDED_AFTER
        return GroupState(members, waiting, committed, known.moved_at, attended_at, still=known.still or still)

    async def _connected(self) -> tuple[AIOKafkaAdminClient, AIOKafkaConsumer]:
        if self._clients is None:
            admin = AIOKafkaAdminClient(**client_options(self._settings))
            consumer = AIOKafkaConsumer(**client_options(self._settings))  # without topics: it only asks for offsets
            self._clients = admin, consumer
            await admin.start()
            await consumer.start()
        return self._clients

    async def aclose(self) -> None:
        """Disconnect."""
        if self._clients is not None:
            (admin, consumer), self._clients = self._clients, None
            await consumer.stop()
            await admin.close()


async def _members(admin: AIOKafkaAdminClient, group: str) -> int:
    answers: list[Any] = await admin.describe_consumer_groups([group])
    _error, _id, _state, _protocol_type, _protocol, members, *_ = answers[0].groups[0]
    return len(members)
