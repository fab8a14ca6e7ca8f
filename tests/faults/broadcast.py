"""Tasks whose states are written as often as a test wants, while nobody works on them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from uuid import UUID

from services.gateway.tasks import Tasks
from shared.clock import now
from shared.database.pool import Pool, acquire
from shared.events import TaskUpdated
from shared.kafka import Outgoing, Publisher
from shared.settings import KafkaSettings
from shared.tasks import TaskStatus
from shared.topics import TASK_UPDATES
from tests.support.task_events import new_task
from tests.support.watchers import written_now

RATE = 15
"""States of each task in a second: with hundreds of clients, most of what one gateway and a test do at once."""


class Broadcast:
    """Writes states of tasks to `task.updates`, as a tracker would.

    Attributes
    ----------
    version
        Of the newest state.
    """

    def __init__(self, tasks: Sequence[UUID], publisher: Publisher) -> None:
        self.tasks = tasks
        self.version = 1
        self._publisher = publisher

    async def write(self, size: int = 0, status: TaskStatus = TaskStatus.RUNNING) -> None:
        """Write a new state of every task, of more than `size` bytes."""
        self.version += 1
        message = written_now() + "x" * size
        states = (
            TaskUpdated(
                task_id=task, version=self.version, status=status, progress=1, message=message, stages={}, result={}
            )
            for task in self.tasks
        )
        await self._publisher.publish(Outgoing.of(TASK_UPDATES.name, str(state.task_id), state) for state in states)

    async def write_for(self, duration: timedelta, size: int = 0) -> None:
        """Write states at `RATE`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        for n in count(1):
            await self.write(size)
            await asyncio.sleep(max(began + n / RATE - clock(), 0))
            if clock() - began > duration.total_seconds():
                return


@asynccontextmanager
async def broadcast(pool: Pool, servers: str, tasks: int) -> AsyncIterator[Broadcast]:
    """Make tasks that run, as far as anybody can see, and take them away at the end."""
    rows = [replace(new_task("local", at=now()), status=TaskStatus.RUNNING, dispatched_at=now()) for _ in range(tasks)]
    publisher = Publisher(KafkaSettings(kafka_bootstrap_servers=servers))
    await publisher.start()
    try:
        for row in rows:
            await Tasks(pool).insert(row)
        yield Broadcast([row.task_id for row in rows], publisher)
    finally:
        async with acquire(pool) as connection:
            await connection.execute("DELETE FROM tasks WHERE task_id = ANY($1)", [row.task_id for row in rows])
        await publisher.aclose()
