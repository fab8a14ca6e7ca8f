"""Which tasks were canceled, so that their records are dropped and their running work is stopped.

Every worker process reads all of `task.control`, from its beginning and without a group: a record may wait for days
behind a stage that is down, and whoever comes to it must know. After a failure the reading begins anew, which adds
nothing twice.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from typing import Self
from uuid import UUID

from aiokafka import AIOKafkaConsumer
from pydantic import ValidationError

from shared.broker import POLL_TIMEOUT, Record
from shared.errors import DependencyUnavailableError
from shared.events import TaskCanceled
from shared.kafka import CONNECT_PATIENCE, client_options
from shared.periodic import periodically
from shared.settings import KafkaSettings
from shared.topics import TASK_CONTROL

MOST_KEPT = 100_000
"""Cancellations that are remembered, the newest, in some 15 MB. For a task beyond them work is done in vain, but no
harm: the tracker has it removed once it hears of it."""

RESTART_PAUSE = timedelta(seconds=5)
"""After a failed reading. A broker that is away needs none: the consumer waits for it by itself."""


class Cancellations:
    """The canceled tasks."""

    def __init__(self) -> None:
        self._tasks: dict[UUID, None] = {}  # in the order of their cancellations
        self._watched: defaultdict[UUID, set[asyncio.Future[None]]] = defaultdict(set)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: KafkaSettings) -> AsyncIterator[Self]:
        """Lend the cancellations, all there are by now and from then on each that comes.

        Raises
        ------
        DependencyUnavailableError
            They could not be read.
        """
        canceled, complete = cls(), asyncio.Event()

        async def follow_cancellations() -> None:
            await canceled._follow(settings, complete)

        async with periodically(RESTART_PAUSE, follow_cancellations):
            try:
                await asyncio.wait_for(complete.wait(), CONNECT_PATIENCE.total_seconds())
            except TimeoutError:
                raise DependencyUnavailableError(
                    f"the topic {TASK_CONTROL.name} cannot be read: has `paperlane migrate` made it?"
                ) from None
            yield canceled

    def add(self, task_id: UUID) -> None:
        """Note that a task was canceled, and tell those who watch it."""
        self._tasks[task_id] = None
        if len(self._tasks) > MOST_KEPT:
            del self._tasks[next(iter(self._tasks))]
        for told in self._watched.get(task_id, ()):
            if not told.done():
                told.set_result(None)

    def __contains__(self, task_id: UUID) -> bool:
        return task_id in self._tasks

    @contextmanager
    def watch(self, task_id: UUID) -> Iterator[asyncio.Future[None]]:
        """Lend a future that is done as soon as a task is canceled."""
        told = asyncio.get_running_loop().create_future()
        self._watched[task_id].add(told)
        try:
            yield told
        finally:
            self._watched[task_id].discard(told)
            if not self._watched[task_id]:
                del self._watched[task_id]

    async def _follow(self, settings: KafkaSettings, complete: asyncio.Event) -> None:
        consumer = AIOKafkaConsumer(
            TASK_CONTROL.name, **client_options(settings), auto_offset_reset="earliest", enable_auto_commit=False
        )
        try:
            await consumer.start()
            ends = await consumer.end_offsets(consumer.assignment())
            while True:
                if all([await consumer.position(partition) >= end for partition, end in ends.items()]):
                    complete.set()
                batches = await consumer.getmany(timeout_ms=int(POLL_TIMEOUT.total_seconds() * 1000))
                for records in batches.values():
                    for record in records:
                        self._take(record)
        finally:
            await consumer.stop()

    def _take(self, record: Record) -> None:
        with suppress(ValidationError):  # the indexer, which consumes the topic too, makes a dead letter of it
            self.add(TaskCanceled.model_validate_json(record.value or b"").task_id)
