"""Publishes the uploads that their gateway could not: the task row is the outbox."""

from datetime import timedelta

import structlog

from shared.clock import Clock, now
from shared.database.pool import Pool, acquire
from shared.kafka import Outgoing, Publisher
from shared.tasks import TaskRow, submitted
from shared.topics import DOCUMENTS_SUBMITTED

GRACE = timedelta(seconds=5)
"""A row younger than this is still in its gateway's hands, whose own deadline for publishing is shorter."""

BATCH = 100
"""Rows of one transaction: as many as are published in well under a second."""

# Rows in another tracker's hands are skipped; one published twice does no harm.
CLAIM = """
    SELECT * FROM tasks WHERE dispatched_at IS NULL AND status = 'pending' AND created_at < $1
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""

MARK = "UPDATE tasks SET dispatched_at = $2 WHERE task_id = ANY($1)"

logger = structlog.stdlib.get_logger()


class Dispatcher:
    """Empties the outbox."""

    def __init__(self, pool: Pool, publisher: Publisher, clock: Clock = now) -> None:
        self._pool = pool
        self._publisher = publisher
        self._clock = clock

    async def dispatch(self) -> int:
        """Publish what was left over, batch by batch, and return how many tasks that were.

        Without a broker the rows simply stay: a publish would wait for it and hold their locks.
        """
        total = 0
        if not await self._publisher.ping():
            return total
        while dispatched := await self._dispatch_batch():
            logger.info("left-over uploads dispatched", tasks=dispatched)
            total += dispatched
        return total

    async def _dispatch_batch(self) -> int:
        async with acquire(self._pool) as connection, connection.transaction():
            rows = await connection.fetch(CLAIM, self._clock() - GRACE, BATCH)
            tasks = [TaskRow(**row) for row in rows]
            await self._publisher.publish(
                Outgoing.of(DOCUMENTS_SUBMITTED.name, str(task.task_id), submitted(task)) for task in tasks
            )
            await connection.execute(MARK, [task.task_id for task in tasks], self._clock())
        return len(tasks)
