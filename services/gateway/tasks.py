"""The gateway's queries on tasks. All are by owner, so that nobody sees what is another's."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from uuid import UUID

from shared.database.durations import count_durations, task_durations
from shared.database.pool import Pool, acquire
from shared.tasks import TaskRow, TaskStatus

COLUMNS = tuple(field.name for field in fields(TaskRow))

INSERT = f"""
    INSERT INTO tasks ({", ".join(COLUMNS)}) VALUES ({", ".join(f"${n}" for n in range(1, len(COLUMNS) + 1))})
"""  # noqa: S608  the names are those of our own dataclass

# A task that the tracker has moved on already must have been dispatched, so its mark may come late; but what a
# cancellation or a replay has put into the outbox since is another matter.
MARK_DISPATCHED = """
    UPDATE tasks SET dispatched_at = $2 WHERE task_id = $1 AND replays = $3 AND (status = 'canceled') = $4
"""

CANCEL = """
    UPDATE tasks SET status = 'canceled', completed_at = $3, updated_at = $3, version = version + 1,
        dispatched_at = NULL, next_retry_at = NULL
    WHERE task_id = $1 AND owner = $2 AND status IN ('pending', 'running') RETURNING *
"""

REOPEN = """
    UPDATE tasks SET status = 'running', completed_at = NULL, updated_at = $3, version = version + 1,
        dispatched_at = NULL, replays = replays + 1, redispatched_at = NULL, alerted_at = NULL,
        failed_at = NULL, error_stage = NULL, error_code = NULL, error_message = NULL
    WHERE task_id = $1 AND owner = $2 AND status = 'failed' RETURNING *
"""

REOPEN_UNITS = "UPDATE task_units SET state = 'open', run = run + 1 WHERE task_id = $1 AND state = 'failed'"

GET = "SELECT * FROM tasks WHERE task_id = $1 AND owner = $2"

GET_MANY = "SELECT * FROM tasks WHERE task_id = ANY($1)"

PAGE = """
    SELECT * FROM tasks WHERE owner = $1 AND ($2::text IS NULL OR status = $2)
    ORDER BY created_at DESC, task_id LIMIT $3 OFFSET $4
"""

COUNT = "SELECT count(*) FROM tasks WHERE owner = $1 AND ($2::text IS NULL OR status = $2)"

COUNT_BY_STATUS = "SELECT status, count(*) AS tasks FROM tasks WHERE $1::text IS NULL OR owner = $1 GROUP BY status"


class Tasks:
    """Reads tasks, inserts new ones, and does what their owner wishes.

    All methods raise `DependencyUnavailableError` without a database.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def insert(self, task: TaskRow) -> None:
        """Insert a new task."""
        async with acquire(self._pool) as connection:
            await connection.execute(INSERT, *(getattr(task, name) for name in COLUMNS))

    async def mark_dispatched(self, task: TaskRow, at: datetime) -> None:
        """Take out of the outbox what followed from a row that was like this."""
        is_canceled = task.status == TaskStatus.CANCELED
        async with acquire(self._pool) as connection:
            await connection.execute(MARK_DISPATCHED, task.task_id, at, task.replays, is_canceled)

    async def cancel(self, owner: str, task_id: UUID, at: datetime) -> TaskRow | None:
        """Cancel a task and return its row, which is in the outbox then; None where there is none or it is over."""
        async with acquire(self._pool) as connection, connection.transaction():
            record = await connection.fetchrow(CANCEL, task_id, owner, at)
            if record is None:
                return None
            task = TaskRow(**record)
            await count_durations(connection, task_durations([task]))
        return task

    async def reopen(self, owner: str, task_id: UUID, at: datetime) -> TaskRow | None:
        """Reopen a failed task and its failed units; return its row, which is in the outbox then, or None."""
        async with acquire(self._pool) as connection, connection.transaction():
            record = await connection.fetchrow(REOPEN, task_id, owner, at)
            if record is not None:
                await connection.execute(REOPEN_UNITS, task_id)
        return TaskRow(**record) if record else None

    async def get(self, owner: str, task_id: UUID) -> TaskRow | None:
        """Return a task, or None where the owner has none of this id."""
        async with acquire(self._pool) as connection:
            record = await connection.fetchrow(GET, task_id, owner)
        return TaskRow(**record) if record else None

    async def get_many(self, task_ids: Sequence[UUID]) -> list[TaskRow]:
        """Return those of the tasks that exist, whoever owns them."""
        async with acquire(self._pool) as connection:
            return [TaskRow(**record) for record in await connection.fetch(GET_MANY, task_ids)]

    async def page(self, owner: str, status: TaskStatus | None, *, skip: int, limit: int) -> tuple[int, list[TaskRow]]:
        """Return how many tasks match in all, and one page of them, newest first."""
        async with acquire(self._pool) as connection:
            total = await connection.fetchval(COUNT, owner, status)
            records = await connection.fetch(PAGE, owner, status, limit, skip)
        return total, [TaskRow(**record) for record in records]

    async def count_by_status(self, owner: str | None = None) -> dict[TaskStatus, int]:
        """Count tasks, of one owner or of all; every status is there."""
        async with acquire(self._pool) as connection:
            found = {record["status"]: record["tasks"] for record in await connection.fetch(COUNT_BY_STATUS, owner)}
        return {status: found.get(status, 0) for status in TaskStatus}
