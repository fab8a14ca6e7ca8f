"""Publishes what follows from a row of `tasks`, after the client has its answer.

The row is the outbox: what cannot be published in time stays there, and the tracker's dispatcher takes it from there.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog
from aiokafka.errors import KafkaError

from services.gateway.tasks import Tasks
from shared.clock import Clock, now
from shared.errors import DependencyUnavailableError
from shared.kafka import Outgoing, Publisher
from shared.tasks import TaskRow

PUBLISH_DEADLINE = timedelta(seconds=3)
"""How long a gateway tries to publish by itself; shorter than the time after which the dispatcher does it."""

logger = structlog.stdlib.get_logger()


class Outbox:
    """Publishes in the background, so that no client ever waits for Kafka."""

    def __init__(self, tasks: Tasks, publisher: Publisher, clock: Clock = now) -> None:
        self._tasks = tasks
        self._publisher = publisher
        self._clock = clock
        self._publishing: set[asyncio.Task[None]] = set()
        self._away = False

    def publish_soon(self, task: TaskRow, records: Sequence[Outgoing]) -> None:
        """Publish what follows from a row as it is now, and take the row out of the outbox then."""
        publishing = asyncio.create_task(self._publish(task, records))
        self._publishing.add(publishing)
        publishing.add_done_callback(self._publishing.discard)

    async def _publish(self, task: TaskRow, records: Sequence[Outgoing]) -> None:
        try:
            await self._hand_over(records)
            await self._tasks.mark_dispatched(task, self._clock())
        except (DependencyUnavailableError, KafkaError, TimeoutError) as error:
            logger.warning("left to the dispatcher", task_id=str(task.task_id), status=task.status, error=repr(error))

    async def _hand_over(self, records: Sequence[Outgoing]) -> None:
        """Publish, once the broker answers again where it did not the last time.

        The producer keeps what it could not send in time, and sends it as well when the broker is back. So it is given
        no more meanwhile: all the work for it would be done twice.
        """
        if self._away and not await self._publisher.ping():
            raise DependencyUnavailableError("no broker answers")
        try:
            await asyncio.wait_for(self._publisher.publish(records), PUBLISH_DEADLINE.total_seconds())
        except (KafkaError, TimeoutError):
            self._away = True
            raise
        self._away = False

    async def aclose(self) -> None:
        """Wait for what is being published; its deadline bounds the wait."""
        await asyncio.gather(*self._publishing, return_exceptions=True)
