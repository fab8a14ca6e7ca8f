"""Empties the outbox: publishes what follows from rows of `tasks` whose gateway could not, and what replays need."""

from collections.abc import Iterable
from datetime import timedelta

import asyncpg
import structlog

from services.tracker import lost
from services.tracker.fold import UnitState, settle
from services.tracker.records import cancellation, retirement, update
from services.tracker.store import await_retries, superseding, write_tasks
from shared.clock import Clock, now
from shared.database.durations import count_durations, task_durations
from shared.database.pool import Connection, Pool, acquire
from shared.dead_letters import DeadLetters, replayed
from shared.events import DeadLetter
from shared.kafka import Outgoing, Publisher
from shared.settings import KafkaSettings
from shared.tasks import TaskRow, TaskStatus

GRACE = timedelta(seconds=5)
"""A row younger than this is still in its gateway's hands, whose own deadline for publishing is shorter."""

BATCH = 100
"""Rows of one transaction: as many as are published in well under a second."""

# Rows in another tracker's hands are skipped; one published twice does no harm. Replays no gateway publishes. A row
# from the future is of a gateway whose clock was put back since.
CLAIM = """
    SELECT * FROM tasks WHERE dispatched_at IS NULL AND (replays > 0 OR updated_at < $1 OR updated_at > $3)
    ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""

MARK = "UPDATE tasks SET dispatched_at = $2 WHERE task_id = ANY($1)"

logger = structlog.stdlib.get_logger()


class Dispatcher:
    """Empties the outbox."""

    def __init__(self, pool: Pool, publisher: Publisher, settings: KafkaSettings, clock: Clock = now) -> None:
        self._pool = pool
        self._publisher = publisher
        self._settings = settings
        self._clock = clock

    async def dispatch(self) -> int:
        """Publish what was left over, batch by batch, and return how many tasks that were.

        Without a broker the rows simply stay: a publish would wait for it and hold their locks.
        """
        total = 0
        if not await self._publisher.ping():
            return total
        while dispatched := await self._dispatch_batch():
            logger.info("outbox emptied", tasks=dispatched)
            total += dispatched
        return total

    async def _dispatch_batch(self) -> int:
        async with acquire(self._pool) as connection, connection.transaction():
            at = self._clock()
            rows = await connection.fetch(CLAIM, at - GRACE, BATCH, at + GRACE)
            tasks = [TaskRow(**row) for row in rows]
            records = [record for task in tasks for record in await self._consequences(connection, task)]
            await self._publisher.publish(records)
            await connection.execute(MARK, [task.task_id for task in tasks], self._clock())
        return len(tasks)

    async def _consequences(self, connection: Connection, task: TaskRow) -> list[Outgoing]:
        """Return what follows from a row in the outbox."""
        match TaskStatus(task.status):
            case TaskStatus.PENDING:
                return [lost.document(task)]
            case TaskStatus.CANCELED:
                return [cancellation(task), update(task)]
            case TaskStatus.RUNNING if task.replays:
                return await self._replay(connection, task)
            case TaskStatus.RUNNING | TaskStatus.COMPLETED | TaskStatus.FAILED:
                return []  # it was published, and its gateway ended before it could note that

    async def _replay(self, connection: Connection, task: TaskRow) -> list[Outgoing]:
        """Return the records of the failed parts of a reopened task, or all that is not done where none has failed."""
        units = await connection.fetch(lost.UNITS, task.task_id)
        failed = [unit for unit in units if unit["state"] == UnitState.OPEN]
        if settle(task):  # other owners of the failed parts had success meanwhile
            records = []
            await count_durations(connection, task_durations([task]))
        else:
            records = await self._again(task, failed) if failed else list(lost.everything(task, units))
        task.version += 1
        task.updated_at = self._clock()
        await await_retries(connection, [task])
        await write_tasks(connection, [task])
        return [*records, *map(retirement, await superseding(connection, [task])), update(task)]

    async def _again(self, task: TaskRow, units: Iterable[asyncpg.Record]) -> list[Outgoing]:
        """Return the dead letters of failed units as first attempts; what Kafka has no longer is made again."""
        records = []
        async with DeadLetters(self._settings) as letters:
            for unit in units:
                position = _dead_letter(unit)
                letter = await letters.read(position) if position else None
                kept = letter and letter.value  # it is empty where the record was too large to be kept
                records.append(replayed(letter, unit["run"]) if letter and kept else lost.unit(task, unit))
        return records


def _dead_letter(unit: asyncpg.Record) -> DeadLetter | None:
    if unit["dead_letter_topic"] is None:
        return None
    return DeadLetter(
        topic=unit["dead_letter_topic"], partition=unit["dead_letter_partition"], offset=unit["dead_letter_offset"]
    )
