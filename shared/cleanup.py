"""Deletes old tasks with their blobs. What they indexed stays searchable."""

from datetime import timedelta

from shared.blobs import BlobStore
from shared.clock import Clock, now
from shared.database.pool import Pool, acquire

BATCH = 200
"""Tasks of one transaction: its row locks last well under a second."""

CANCELED_STAYS = timedelta(hours=3)
"""Beyond the two hours and more in which the removal of a canceled task's chunks is asked for again."""

# What a wrong clock deletes is lost, so two must agree: this process's and the database's on the time, a worker's and
# the tracker's on when a task ended.
TIME = "SELECT least($1, now())"

# Rows that another clean-up has in hand are skipped. A task that is not over has no completed_at and never matches. A
# canceled one stays while its row is still the outbox, and for as long as chunks of it may turn up and must be removed.
CLAIM = """
    SELECT task_id, blob_url FROM tasks
    WHERE status IN ('completed', 'failed', 'canceled') AND completed_at < $1 AND updated_at < $1
      AND (status <> 'canceled' OR (dispatched_at IS NOT NULL AND completed_at < $4))
      AND ($2::text IS NULL OR owner = $2)
    ORDER BY completed_at LIMIT $3 FOR UPDATE SKIP LOCKED
"""

DELETE = "DELETE FROM tasks WHERE task_id = ANY($1)"


async def clean_up(
    pool: Pool, blobs: BlobStore, older_than: timedelta, *, owner: str | None = None, clock: Clock = now
) -> int:
    """Delete the tasks that ended longer ago than `older_than`, and their blobs.

    Blobs go first: a crash in between leaves rows, which the next run finds again, rather than blobs that nothing
    knows.

    Returns
    -------
    int
        How many tasks were deleted.
    """
    deleted = 0
    while batch := await _delete_batch(pool, blobs, older_than, owner, clock):
        deleted += batch
    return deleted


async def _delete_batch(pool: Pool, blobs: BlobStore, older_than: timedelta, owner: str | None, clock: Clock) -> int:
    async with acquire(pool) as connection, connection.transaction():
        at = await connection.fetchval(TIME, clock())
        rows = await connection.fetch(CLAIM, at - older_than, owner, BATCH, at - CANCELED_STAYS)
        await blobs.delete(row["blob_url"] for row in rows)
        await connection.execute(DELETE, [row["task_id"] for row in rows])
    return len(rows)
