"""Batch subscriptions on FastStream that hand over raw records and lose none.

FastStream owns the consume loop, the commits and the graceful stop. Three of its ways are turned to ours here:
an idle batch subscriber sleeps between two polls and is deaf meanwhile, its parser refuses headers that are not
UTF-8 and then skips the record, and it decodes a batch as a whole, so that one bad record fails all.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage
from typing_extensions import override

from shared.kafka import client_options
from shared.settings import KafkaSettings
from shared.topics import Topic

POLL_TIMEOUT = timedelta(seconds=1)
"""How long one fetch waits for records: the pace at which an idle consumer looks up from its wait."""

STOP_PATIENCE = timedelta(seconds=15)
"""How long a stopping service lets batches in flight finish; stays below a pod's grace period of 30 s."""

MAX_POLL_INTERVAL = timedelta(minutes=15)
"""A consumer that takes longer over one batch is considered dead; stays above a few hard deadlines of a unit."""

AGAIN_PAUSE = timedelta(seconds=1)
"""Before a batch that failed comes again: what it needs is away, and asking it without a pause helps nobody."""

Record = ConsumerRecord[bytes, bytes]
Consume = Callable[[tuple[Record, ...]], Awaitable[None]]

logger = structlog.stdlib.get_logger()

# FastStream informs of every batch, and warns that topics are not made automatically, which is how we want it.
_errors_only = logging.getLogger(f"{__name__}.faststream")
_errors_only.setLevel(logging.ERROR)


class WaitingConsumer(AIOKafkaConsumer):
    """A consumer whose `getmany` returns only with records in hand.

    FastStream sleeps for the poll timeout after each empty poll, and a record that arrives then waits. Never
    returning empty-handed takes that sleep away; docs/decisions/0001-waiting-consumer.md has the figures.
    """

    @override
    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        while True:
            records = await super().getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
            if records:
                return records


class Broker(KafkaBroker):
    """A FastStream broker whose consumers are `WaitingConsumer`; publishing goes through `Publisher` instead."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(
            **client_options(settings),
            consumer_only=True,
            apply_types=False,
            graceful_timeout=STOP_PATIENCE.total_seconds(),
            logger=_errors_only,
        )

    @override
    async def _connect(self) -> Callable[..., AIOKafkaConsumer]:
        builder = await super()._connect()
        options = builder.keywords if isinstance(builder, partial) else {}
        self.config.broker_config.builder = partial(WaitingConsumer, **options)
        return self.config.broker_config.builder


class Membership(ConsumerRebalanceListener):
    """Knows whether a consumer is a settled member of its group, with partitions or as a spare."""

    def __init__(self) -> None:
        self.settled = False

    @override
    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.settled = False

    @override
    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.settled = True


def subscribe(broker: Broker, topic: Topic, consume: Consume, *, max_records: int) -> Membership:
    """Call `consume` with each batch of raw records of a topic.

    Where the topic has a group, offsets are committed after `consume` returned; when it raises, the same batch
    comes again. Elsewhere every process reads all partitions from the latest record on.

    Parameters
    ----------
    max_records
        The most records of one batch.
    """
    membership = Membership()
    subscriber = broker.subscriber(
        topic.name,
        batch=True,
        group_id=topic.group,
        auto_offset_reset="earliest" if topic.group else "latest",
        ack_policy=AckPolicy.NACK_ON_ERROR if topic.group else AckPolicy.ACK_FIRST,
        max_records=max_records,
        batch_timeout_ms=int(POLL_TIMEOUT.total_seconds() * 1000),
        max_poll_interval_ms=int(MAX_POLL_INTERVAL.total_seconds() * 1000),
        listener=membership if topic.group else None,
        parser=_keep_raw,
        decoder=_hand_over_raw,
    )

    async def consume_or_pause(records: tuple[Record, ...]) -> None:
        try:
            await consume(records)
        except Exception as error:
            logger.warning("batch comes again", topic=topic.name, records=len(records), error=repr(error))
            await asyncio.sleep(AGAIN_PAUSE.total_seconds())
            raise

    subscriber(consume_or_pause)
    return membership


async def _keep_raw(records: tuple[Record, ...], parse: Callable[[Any], Awaitable[KafkaMessage]]) -> KafkaMessage:
    """Let FastStream parse without the headers, which may hold any bytes, then put the real records back."""
    message = await parse(tuple(replace(record, headers=()) for record in records))
    message.raw_message = records
    return message


async def _hand_over_raw(message: KafkaMessage) -> Any:
    return message.raw_message
