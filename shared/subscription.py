"""What a process knows of one of its consumers."""

import time
from datetime import timedelta
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream._internal.endpoint.subscriber.utils import MultiLock
from faststream.kafka.subscriber.usecase import LogicSubscriber
from typing_extensions import override

from shared.breaker import Breaker
from shared.topics import Topic

HANDOVER_PATIENCE = timedelta(seconds=10)
"""How long a rebalance waits for the batch in hand, so that its records are not done again by whoever gets them. Most
batches take less; all members wait for the slowest."""


class Subscription(ConsumerRebalanceListener):
    """One consumer of this process: whether it is a member of its group, still consumes, and moves.

    Parameters
    ----------
    breaker
        Watches how the records end; None where nobody tells.

    Attributes
    ----------
    settled
        Whether it is a member of its group, with partitions or as a spare.
    partitions
        Those that are assigned to it.
    subscriber
        What runs its consume loop.
    """

    def __init__(self, topic: Topic, breaker: Breaker | None = None) -> None:
        self.topic = topic
        self.settled = False
        self.partitions: frozenset[TopicPartition] = frozenset()
        self._breaker = breaker
        self._moved_at = time.monotonic()
        self.subscriber: LogicSubscriber[Any] | None = None

    def moved(self) -> None:
        """Note that it has got on with its work, or that there is none."""
        self._moved_at = time.monotonic()

    @property
    def idle(self) -> timedelta:
        """The time since it last moved, of which the end of a record is a part."""
        ended_at = self._breaker.ended_at if self._breaker else self._moved_at
        return timedelta(seconds=time.monotonic() - max(self._moved_at, ended_at))

    @property
    def over(self) -> bool:
        """Whether its consume loop has ended, though nobody stopped it."""
        by = self.subscriber
        return by is not None and by.running and all(loop.done() for loop in by.tasks)

    def problem(self) -> str | None:
        """Say what is wrong with it; None where it does its work."""
        if self.over:
            return "its consume loop has ended"
        if not self.settled:
            return "not a member of its consumer group yet"
        return self._breaker.problem() if self._breaker else None

    @override
    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.settled = False
        self.partitions = frozenset()
        if self.subscriber and isinstance(self.subscriber.lock, MultiLock):  # held until the batch in hand is committed
            await self.subscriber.lock.wait_release(HANDOVER_PATIENCE.total_seconds())

    @override
    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.settled = True
        self.partitions = frozenset(assigned)
        self.moved()
