"""The gateway's queries on tasks. All are by owner, so that nobody sees what is another's."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from uuid import UUID

from shared.database.pool import Pool, acquire
from shared.tasks import TaskRow, TaskStatus

COLUMNS = tuple(field.name for field in fields(TaskRow))

INSERT = f"""
    INSERT INTO tasks ({", ".join(COLUMNS)}) VALUES ({", ".join(f"${n}" for n in range(1, len(COLUMNS) + 1))})
"""  # noqa: S608  the names are those of our own dataclass

# A task that the tracker has moved on already must have been dispatched, so its mark may come late.
MARK_DISPATCHED = "UPDATE tasks SET dispatched_at = $2 WHERE task_id = $1"

GET = "SELECT * FROM tasks WHERE task_id = $1 AND owner = $2"

GET_MANY = "SELECT * FROM tasks WHERE task_id = ANY($1)"

PAGE = """
    SELECT * FROM tasks WHERE owner = $1 AND ($2::text IS NULL OR status = $2)
    ORDER BY created_at DESC, task_id LIMIT $3 OFFSET $4
"""

COUNT = "SELECT count(*) FROM tasks WHERE owner = $1 AND ($2::text IS NULL OR status = $2)"

COUNT_BY_STATUS = "SELECT status, count(*) AS tasks FROM tasks WHERE $1::text IS NULL OR owner = $1 GROUP BY status"


class Tasks:
    """Reads tasks, and inserts new ones. All methods raise `DependencyUnavailableError` without a database."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def insert(self, task: TaskRow) -> None:
        """Insert a new task."""
        async with acquire(self._pool) as connection:
            await connection.execute(INSERT, *(getattr(task, name) for name in COLUMNS))

    async def mark_dispatched(self, task_id: UUID, at: datetime) -> None:
        """Take a task out of the outbox."""
        async with acquire(self._pool) as connection:
            await connection.execute(MARK_DISPATCHED, task_id, at)

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
