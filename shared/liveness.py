"""Tells consumers that stand still from those that wait, and ends the process where nothing else will help.

Work that waits while no record ends makes the process unready, and after twice that time it dies, so that its
supervisor starts it anew; everything is at least once, so what it had in hand comes again. Neither a rebalance nor a
deliberate pause is taken for that, and nor is a broker that is away. An event loop that is blocked cannot look at
itself: a timer beside it ends the process in the same time, with the traceback of every thread.
"""

import asyncio
import faulthandler
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import NoReturn

import structlog
from aiokafka.errors import KafkaError

from shared.offsets import Offsets
from shared.periodic import periodically
from shared.settings import KafkaSettings
from shared.subscription import Subscription

STALL_LIMIT = timedelta(seconds=360)
"""The longest that work may wait while no record ends; above the 300 s after which a unit's child is killed."""

JOIN_LIMIT = timedelta(seconds=60)
"""The least that a consumer may take to become a member of its group: three times what a rebalance may last, and the
session of a member that died outlives it by 10 s."""

LOOKS = 36
"""How often a consumer is looked at within the limit: every 10 s, which costs the broker two small requests."""

LOOK_TIMEOUT = timedelta(seconds=5)
"""The longest that a look may take; then the broker counts as away."""

logger = structlog.stdlib.get_logger()


class Liveness:
    """Watches the subscriptions of a process.

    Parameters
    ----------
    limit
        How long work may wait while no record ends; after twice that the process dies.

    Attributes
    ----------
    subscriptions
        Those that are watched; with none the process is not ready.
    """

    def __init__(self, settings: KafkaSettings, limit: timedelta = STALL_LIMIT) -> None:
        self.subscriptions: Sequence[Subscription] = ()
        self._settings = settings
        self._limit = limit

    def problem(self) -> str | None:
        """Say why the process is not ready; None where it is."""
        if not self.subscriptions:
            return "starting"
        for each in self.subscriptions:
            if reason := each.problem() or self._stall(each, self._limit):
                return f"{each.topic.name}: {reason}"
        return None

    def beyond_help(self) -> str | None:
        """Say why the process had better be started anew; None where it need not."""
        for each in self.subscriptions:
            if reason := each.problem() if each.over else self._stall(each, 2 * self._limit):
                return f"{each.topic.name}: {reason}"
        return None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch while the context is open.

        Raises
        ------
        KafkaError
            On entry: the broker does not answer.
        """
        try:
            async with (
                Offsets.open(self._settings) as offsets,
                periodically(self._limit / LOOKS, partial(self._look, offsets)),
            ):
                yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _stall(self, subscription: Subscription, limit: timedelta) -> str | None:
        idle = subscription.idle
        if idle <= (limit if subscription.settled else max(limit, JOIN_LIMIT)):
            return None
        what = "work waits, and no record has ended" if subscription.settled else "no member of its consumer group"
        return f"stands still: {what} for {idle.total_seconds():.0f} s"

    async def _look(self, offsets: Offsets) -> None:
        for each in self.subscriptions:
            faulthandler.dump_traceback_later(2 * self._limit.total_seconds(), exit=True)
            if await self._nothing_to_do(each, offsets):
                each.moved()
        if reason := self.beyond_help():
            end_process(reason)

    async def _nothing_to_do(self, subscription: Subscription, offsets: Offsets) -> bool:
        """Tell whether the subscription has no reason to move: no work for it, or no broker to give it any.

        One that is not settled has one: to become a member again.
        """
        group = subscription.topic.group or ""
        try:
            async with asyncio.timeout(min(LOOK_TIMEOUT, self._limit).total_seconds()):
                waiting = await offsets.waiting(group, subscription.partitions)
        except (KafkaError, TimeoutError, OSError) as error:
            logger.debug("broker does not answer", error=repr(error))
            return True
        return subscription.settled and not waiting


def end_process(reason: str) -> NoReturn:
    """End this process at once, as a crash would: whatever hangs in it would hang in an orderly stop as well."""
    logger.critical("process ends itself", reason=reason)
    os._exit(os.EX_SOFTWARE)
