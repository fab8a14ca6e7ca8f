"""Batch subscriptions on FastStream that hand over raw records and lose none.

FastStream owns the consume loop, the commits and the graceful stop. Three of its ways are turned to ours here:
an idle batch subscriber sleeps between two polls and is deaf meanwhile, its parser refuses headers that are not
UTF-8 and then skips the record, and it decodes a batch as a whole, so that one bad record fails all.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from faststream import AckPolicy
from faststream.exceptions import NackMessage
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.kafka.subscriber.usecase import LogicSubscriber
from typing_extensions import override

from shared.breaker import Breaker, StagePausedError
from shared.errors import error_code
from shared.kafka import client_options
from shared.settings import KafkaSettings
from shared.subscription import Subscription
from shared.topics import Topic

POLL_TIMEOUT = timedelta(seconds=1)
"""How long one fetch waits for records: the pace at which an idle consumer looks up from its wait."""

GRACE_PERIOD = timedelta(seconds=15)
"""How long a stopping service lets batches in flight finish; stays below a pod's grace period of 30 s."""

CANCEL_PATIENCE = timedelta(seconds=2)
"""How long handlers that were canceled may clean up before what they work with is closed."""

MAX_POLL_INTERVAL = timedelta(days=1)
"""A consumer that takes longer over one batch leaves its group, and would begin the same batch anew without end. So it
stays above any batch: the parser's 16 units may go through a single child, an hour each at most. A consumer that stands
still is found long before, by its lack of progress."""

REBALANCE_TIMEOUT = timedelta(seconds=20)
"""How long the group waits for a member in a rebalance; above `HANDOVER_PATIENCE` and the 3 s until it hears of it."""

AGAIN_PAUSE = timedelta(seconds=1)
"""Before a batch that failed comes again: what it needs is away, and asking it without a pause helps nobody."""

Record = ConsumerRecord[bytes, bytes]
Consume = Callable[[tuple[Record, ...]], Awaitable[None]]

logger = structlog.stdlib.get_logger()

# FastStream informs of every batch, and warns that topics are not made automatically, which is how we want it. A batch
# that a stop cancels is an error to it.
_errors_only = logging.getLogger(f"{__name__}.faststream")
_errors_only.setLevel(logging.ERROR)
_errors_only.addFilter(lambda entry: not (entry.exc_info and entry.exc_info[0] is asyncio.CancelledError))


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

    def __init__(self, settings: KafkaSettings, *, grace_period: timedelta = GRACE_PERIOD) -> None:
        super().__init__(
            **client_options(settings),
            consumer_only=True,
            apply_types=False,
            graceful_timeout=grace_period.total_seconds(),
            logger=_errors_only,
        )

    @override
    async def _connect(self) -> Callable[..., AIOKafkaConsumer]:
        builder = await super()._connect()
        options = builder.keywords if isinstance(builder, partial) else {}
        self.config.broker_config.builder = partial(WaitingConsumer, **options)
        return self.config.broker_config.builder

    @override
    async def stop(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> None:
        """Stop consuming, let batches in flight finish, and cancel those that outlast the grace period.

        FastStream does not wait for what it cancels; here nothing is closed under a handler that cleans up.
        """
        logger.info("consuming no further", grace_seconds=self.config.graceful_timeout)
        loops = [loop for each in self.subscribers if isinstance(each, LogicSubscriber) for loop in each.tasks]
        await super().stop(exc_type, exc_val, exc_tb)
        if loops:
            await asyncio.wait(loops, timeout=CANCEL_PATIENCE.total_seconds())


def subscribe(
    broker: Broker, topic: Topic, consume: Consume, *, max_records: int, breaker: Breaker | None = None
) -> Subscription:
    """Call `consume` with each batch of raw records of a topic.

    Where the topic has a group, offsets are committed after `consume` returned; when it raises, the same batch
    comes again. Elsewhere every process reads all partitions from the latest record on.

    Parameters
    ----------
    max_records
        The most records of one batch.
    breaker
        Told by `consume` how each record ends; no batch is taken while it pauses the stage.
    """
    subscription = Subscription(topic, breaker)
    subscriber = subscription.subscriber = broker.subscriber(
        topic.name,
        batch=True,
        group_id=topic.group,
        auto_offset_reset="earliest" if topic.group else "latest",
        ack_policy=AckPolicy.NACK_ON_ERROR if topic.group else AckPolicy.ACK_FIRST,
        max_records=max_records,
        batch_timeout_ms=int(POLL_TIMEOUT.total_seconds() * 1000),
        max_poll_interval_ms=int(MAX_POLL_INTERVAL.total_seconds() * 1000),
        rebalance_timeout_ms=int(REBALANCE_TIMEOUT.total_seconds() * 1000),
        listener=subscription if topic.group else None,
        parser=_keep_raw,
        decoder=_hand_over_raw,
    )

    async def consume_or_pause(records: tuple[Record, ...]) -> None:
        try:
            with breaker.batch() if breaker else nullcontext():
                await _loudly(consume(records))
        except asyncio.CancelledError:
            logger.warning("batch given up by the stop", topic=topic.name, records=len(records))
            raise
        except Exception as error:
            if not isinstance(error, StagePausedError):
                unforeseen = error if error_code(error) == "internal_error" else None
                logger.warning(
                    "batch comes again", topic=topic.name, records=len(records), error=repr(error), exc_info=unforeseen
                )
            await asyncio.sleep(AGAIN_PAUSE.total_seconds())
            raise NackMessage from error
        finally:
            subscription.moved()

    subscriber(consume_or_pause)
    return subscription


async def _loudly(work: Awaitable[None]) -> None:
    """Do work, and make a failure of a cancellation that leaks out of it.

    FastStream takes a cancellation for its own, made by a stop, and ends the consume loop for good without a word.
    """
    try:
        await work
    except asyncio.CancelledError as leaked:
        loop = asyncio.current_task()
        if loop is None or loop.cancelling():
            raise
        raise RuntimeError("something that the batch waited for was canceled") from leaked


async def _keep_raw(records: tuple[Record, ...], parse: Callable[[Any], Awaitable[KafkaMessage]]) -> KafkaMessage:
    """Let FastStream parse without the headers, which may hold any bytes, then put the real records back."""
    message = await parse(tuple(replace(record, headers=()) for record in records))
    message.raw_message = records
    return message


async def _hand_over_raw(message: KafkaMessage) -> Any:
    return message.raw_message
