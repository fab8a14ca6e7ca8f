"""Finds tasks that stand still, and brings them to an end: by their lost parts once more, or as failed.

A task stands still when nothing has been heard of it for `TASK_TIMEOUT`, no retry of it is pending, and no record that
could be its own is left in Kafka: all that was written before its last sign of life is finished. So a task that waits
behind a million others, or that works for hours, is never touched; and while the broker is away nothing is.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from services.tracker import lost
from services.tracker.fold import settle
from services.tracker.records import retirement, update
from services.tracker.store import superseding, write_tasks
from shared.clock import Clock, now
from shared.database.durations import count_durations, task_durations
from shared.database.pool import Connection, Pool, acquire
from shared.events import Stage
from shared.kafka import Publisher
from shared.tasks import TaskRow

CLOCK_MARGIN = timedelta(seconds=10)
"""How far the clocks of two machines may differ; records carry the time of whoever wrote them."""

BATCH = 100
"""Tasks of one transaction: as many as are published in well under a second."""

CODE = "task_timeout"

# What was noted by a clock that has been put back since would hide a task from the watchdog: its silence begins now, by
# the database's clock, so that nothing gets older than it is, should it be the watchdog's own that is behind.
FROM_THE_FUTURE = """
    UPDATE tasks SET updated_at = least(updated_at, now()),
        dispatched_at = CASE WHEN dispatched_at IS NOT NULL THEN least(dispatched_at, now()) END,
        redispatched_at = CASE WHEN redispatched_at <= now() THEN redispatched_at END
    WHERE task_id IN (
        SELECT task_id FROM tasks
        WHERE status IN ('pending', 'running') AND greatest(updated_at, dispatched_at, redispatched_at) > $1
        FOR UPDATE SKIP LOCKED
    )
"""

ANY_STALLED = """
    SELECT EXISTS (SELECT FROM tasks WHERE status IN ('pending', 'running') AND dispatched_at < $1 AND updated_at < $1)
"""

# A retry that is long due, and whose record has left its retry topic, is pending no longer. When the record came back
# to its stage nobody has reported, but it was before now.
RETURNED = """
    UPDATE tasks SET updated_at = $3, version = version + 1, next_retry_at = NULL WHERE task_id IN (
        SELECT task_id FROM tasks t WHERE status IN ('pending', 'running') AND updated_at < $1 AND next_retry_at < $2
            AND NOT EXISTS (SELECT FROM task_retries r WHERE r.task_id = t.task_id AND r.retry_at >= $2)
        FOR UPDATE SKIP LOCKED
    )
"""

CLAIM = """
    SELECT * FROM tasks WHERE status IN ('pending', 'running') AND dispatched_at < $1 AND updated_at < $1
        AND (redispatched_at IS NULL OR redispatched_at < $1) AND next_retry_at IS NULL
    ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""

MARK = "UPDATE tasks SET redispatched_at = $2 WHERE task_id = ANY($1)"

logger = structlog.stdlib.get_logger()


class Watchdog:
    """Watches over the tasks that are not over.

    Parameters
    ----------
    oldest_waiting
        Tells when the oldest record was written that no consumer has finished.
    timeout
        How long a task may be silent.
    """

    def __init__(
        self,
        pool: Pool,
        publisher: Publisher,
        oldest_waiting: Callable[[], Awaitable[datetime]],
        timeout: timedelta,
        clock: Clock = now,
    ) -> None:
        self._pool = pool
        self._publisher = publisher
        self._oldest_waiting = oldest_waiting
        self._timeout = timeout
        self._clock = clock

    async def look(self) -> int:
        """Deal with the tasks that stand still, and return how many there were.

        Raises
        ------
        DependencyUnavailableError
            The broker or the database is away.
        """
        silent_since = self._clock() - self._timeout
        async with acquire(self._pool) as connection:
            await connection.execute(FROM_THE_FUTURE, self._clock() + CLOCK_MARGIN)
            if not await connection.fetchval(ANY_STALLED, silent_since):
                return 0
        still = min(silent_since, await self._oldest_waiting() - CLOCK_MARGIN)
        async with acquire(self._pool) as connection:
            await connection.execute(RETURNED, still, silent_since, self._clock())
        total = 0
        while found := await self._deal_with(still):
            total += found
        return total

    async def _deal_with(self, still: datetime) -> int:
        async with acquire(self._pool) as connection, connection.transaction():
            rows = await connection.fetch(CLAIM, still, BATCH)
            tasks = [TaskRow(**row) for row in rows]
            again = [task for task in tasks if _may_go_again(task)]
            failed = [task for task in tasks if not _may_go_again(task)]
            await self._dispatch(connection, again)
            await self._fail(connection, failed)
            newest = await superseding(connection, failed)
        await self._publisher.publish([*map(update, failed), *map(retirement, newest)])
        return len(tasks)

    async def _dispatch(self, connection: Connection, tasks: list[TaskRow]) -> None:
        """Send the lost parts of tasks once more. What has been done of them is not done again."""
        records = []
        for task in tasks:
            missing = list(lost.everything(task, await connection.fetch(lost.UNITS, task.task_id)))
            logger.warning("lost work dispatched again", task_id=str(task.task_id), records=len(missing))
            records += missing
        await self._publisher.publish(records)
        await connection.execute(MARK, [task.task_id for task in tasks], self._clock())

    async def _fail(self, connection: Connection, tasks: list[TaskRow]) -> None:
        for task in tasks:
            task.failed_at = task.updated_at = self._clock()
            task.error_stage, task.error_code = _unfinished(task), CODE
            task.error_message = f"Task timeout: nothing was heard of it for {self._timeout.total_seconds():g} s, twice"
            task.version += 1
            settle(task)
            logger.error("task timed out", task_id=str(task.task_id), stage=task.error_stage)
        if tasks:
            await write_tasks(connection, tasks)
            await count_durations(connection, task_durations(tasks))


def _may_go_again(task: TaskRow) -> bool:
    """Tell whether something has moved since the lost parts were last sent again, or they never were."""
    return task.redispatched_at is None or task.updated_at >= task.redispatched_at


def _unfinished(task: TaskRow) -> Stage:
    """Return the first stage that has work left."""
    if not task.parsed:
        return Stage.PARSE
    return Stage.EMBED if task.embed_done < task.parts else Stage.INDEX
