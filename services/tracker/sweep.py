"""Removes what crashes left behind: blobs that never became a task, and chunks of tasks that were canceled."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import structlog

from shared.blobs import BlobStore, StoredBlob
from shared.clock import Clock, now
from shared.database.pool import Pool, acquire
from shared.kafka import Outgoing, Publisher
from shared.tasks import TaskRow, canceled
from shared.topics import TASK_CONTROL

GRACE = timedelta(hours=1)
"""How long a blob may lie without a row. A gateway inserts the row when the blob is whole, within half a minute or not
at all; and no upload rests for an hour between two of its pieces, for every proxy has given it up by then."""

MAX_STRAYS = 10_000
"""Blobs that one sweep deletes: a few megabytes of memory. The next one goes on."""

UPLOAD = re.compile(r"[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.pdf(?:#[0-9]+)?")
"""The key of an upload, `{owner}/{task_id}.pdf`, whole or half-written; whatever else lies in the store is not ours."""

KNOWN = "SELECT task_id FROM tasks WHERE task_id = ANY($1)"

DISCARD_FROM, DISCARD_UNTIL = timedelta(minutes=10), timedelta(minutes=130)
"""The age of cancellations that are published again. Nothing indexes a part for ten minutes; and where this is done
hourly, each is published twice at least."""

BATCH = 500
"""Cancellations read and published at once."""

CANCELED = """
    SELECT * FROM tasks
    WHERE status = 'canceled' AND (completed_at, task_id) > ($1, $2) AND completed_at < $3
    ORDER BY completed_at, task_id LIMIT $4
"""

logger = structlog.stdlib.get_logger()


async def sweep(pool: Pool, blobs: BlobStore, grace: timedelta = GRACE) -> int:
    """Delete the blobs of which no row knows at two looks that lie `grace` apart, and return how many there were.

    Whatever appeared or was written to in between is left alone. So no clock decides: neither one that jumps, nor the
    difference between two, nor the hours that an upload may take, whose blob some stores date from its beginning.

    A race remains: a gateway that is frozen for all of `grace` between a blob and its row, and then goes on. Its client
    has long gone, and the task fails because its file is missing.

    Raises
    ------
    DependencyUnavailableError
        The blob store or the database does not answer.
    """
    suspects: set[StoredBlob] = set()
    async for strays in _strays(pool, blobs):
        suspects.update(strays[: MAX_STRAYS - len(suspects)])
    if not suspects:
        return 0
    await asyncio.sleep(grace.total_seconds())
    deleted = 0
    async for strays in _strays(pool, blobs):
        still = [blob.url for blob in strays if blob in suspects]
        await blobs.delete(still)
        deleted += len(still)
    logger.info("blobs without a task deleted", blobs=deleted)
    return deleted


async def _strays(pool: Pool, blobs: BlobStore) -> AsyncIterator[list[StoredBlob]]:
    """Yield the uploads without a row. A blob is listed before its row is looked for, never the other way round."""
    base = blobs.url("")
    async for batch in blobs.listing():
        keys = {blob: UPLOAD.fullmatch(blob.url.removeprefix(base)) for blob in batch}
        task_of = {blob: UUID(key[1]) for blob, key in keys.items() if key}
        async with acquire(pool) as connection:
            known = {record["task_id"] for record in await connection.fetch(KNOWN, list(task_of.values()))}
        yield [blob for blob, task_id in task_of.items() if task_id not in known]


async def discard_again(pool: Pool, publisher: Publisher, clock: Clock = now) -> int:
    """Publish the cancellations of the last two hours once more, and return how many there were.

    It heals what an indexer leaves that was cut off from its group while it wrote chunks of a task, was canceled
    meanwhile, and died before it could report them.

    Raises
    ------
    DependencyUnavailableError
        The database does not answer.
    """
    published = 0
    since, last = clock() - DISCARD_UNTIL, UUID(int=0)
    until = clock() - DISCARD_FROM
    while True:
        async with acquire(pool) as connection:
            records = await connection.fetch(CANCELED, since, last, until, BATCH)
        tasks = [TaskRow(**record) for record in records]
        await publisher.publish(Outgoing.of(TASK_CONTROL.name, str(task.task_id), canceled(task)) for task in tasks)
        published += len(tasks)
        if len(tasks) < BATCH:
            return published
        since, last = records[-1]["completed_at"], tasks[-1].task_id
