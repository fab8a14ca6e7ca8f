from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from services.gateway.tasks import Tasks
from services.tracker.store import TaskStore
from shared import cleanup
from shared.blobs import BlobStore
from shared.cleanup import clean_up
from shared.database.pool import Pool, acquire
from shared.errors import DependencyUnavailableError
from shared.settings import BlobSettings, VectorSettings
from shared.tasks import TaskRow
from shared.vectors import StoredChunk, create_vector_store
from tests.support.task_events import START, log_of, new_task, over

KEPT = timedelta(days=30)
ENDED = START + timedelta(hours=1)
TICK = timedelta(microseconds=1)


def just_old_enough() -> datetime:
    return ENDED + KEPT + TICK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> BlobStore:
    return BlobStore(BlobSettings(blob_url=folder.as_uri()))


async def uploaded(tasks: Tasks, blobs: BlobStore, status: str, *, owner: str = "owner") -> TaskRow:
    """Insert a task that ended at ENDED, if it is over at all, and its blob."""
    task = over(new_task(owner), status, ENDED)
    task = replace(task, blob_url=blobs.url(f"{owner}/{task.task_id}.pdf"), dispatched_at=ENDED)
    if status in ("pending", "running"):
        task = replace(task, completed_at=None)
    await blobs.write(task.blob_url, _content())
    await tasks.insert(task)
    return task


async def _content() -> AsyncIterator[bytes]:
    yield b"%PDF-1.7"


def files(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.pdf")}


async def left(pool: Pool) -> set[object]:
    async with acquire(pool) as connection:
        return {record["task_id"] for record in await connection.fetch("SELECT task_id FROM tasks")}


async def test_only_tasks_that_are_over_and_old_enough_go_with_their_blobs(
    tasks: Tasks, pool: Pool, blobs: BlobStore, folder: Path
) -> None:
    rows = {
        status: await uploaded(tasks, blobs, status)
        for status in ("pending", "running", "completed", "failed", "canceled")
    }
    assert await clean_up(pool, blobs, KEPT, clock=lambda: ENDED + KEPT) == 0
    assert len(files(folder)) == 5
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 3
    kept = {rows["pending"].task_id, rows["running"].task_id}
    assert await left(pool) == kept
    assert files(folder) == {str(task_id) for task_id in kept}
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 0


async def test_a_cancellation_that_is_still_to_be_published_keeps_its_row(
    tasks: Tasks, pool: Pool, blobs: BlobStore, folder: Path
) -> None:
    task = new_task()
    task = replace(task, blob_url=blobs.url(f"owner/{task.task_id}.pdf"))
    await blobs.write(task.blob_url, _content())
    await tasks.insert(task)
    canceled = await tasks.cancel(task.owner, task.task_id, ENDED)
    assert canceled
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 0
    assert files(folder) == {str(task.task_id)}
    await tasks.mark_dispatched(canceled, ENDED)
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 1
    assert (await left(pool), files(folder)) == (set(), set())


async def test_only_the_given_owners_tasks_go(tasks: Tasks, pool: Pool, blobs: BlobStore, folder: Path) -> None:
    await uploaded(tasks, blobs, "completed", owner="ann")
    kept = await uploaded(tasks, blobs, "completed", owner="bob")
    assert await clean_up(pool, blobs, KEPT, owner="ann", clock=just_old_enough) == 1
    assert await left(pool) == {kept.task_id}
    assert files(folder) == {str(kept.task_id)}


async def test_a_blob_that_is_gone_already_is_no_hindrance(tasks: Tasks, pool: Pool, blobs: BlobStore) -> None:
    task = await uploaded(tasks, blobs, "failed")
    await blobs.delete([task.blob_url])
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 1
    assert await left(pool) == set()


async def test_while_the_blob_store_fails_the_row_stays_and_the_next_run_finds_it(
    tasks: Tasks, pool: Pool, blobs: BlobStore, folder: Path
) -> None:
    task = await uploaded(tasks, blobs, "completed")
    path = folder / "owner" / f"{task.task_id}.pdf"
    path.unlink()
    (path / "in the way").mkdir(parents=True)  # a folder in its place cannot be deleted as a blob
    with pytest.raises(DependencyUnavailableError, match="cannot delete"):
        await clean_up(pool, blobs, KEPT, clock=just_old_enough)
    assert await left(pool) == {task.task_id}
    (path / "in the way").rmdir()
    path.rmdir()
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 1


async def test_many_go_in_several_batches(
    tasks: Tasks, pool: Pool, blobs: BlobStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "BATCH", 2)
    for _ in range(5):
        await uploaded(tasks, blobs, "completed")
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 5
    assert (await left(pool), files(folder)) == (set(), set())


async def test_a_row_that_another_clean_up_has_in_hand_is_skipped(tasks: Tasks, pool: Pool, blobs: BlobStore) -> None:
    held, free = [await uploaded(tasks, blobs, "completed") for _ in range(2)]
    async with acquire(pool) as other, other.transaction():
        await other.execute("SELECT 1 FROM tasks WHERE task_id = $1 FOR UPDATE", held.task_id)
        assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 1
        assert await tasks.get(free.owner, free.task_id) is None
    assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 1


async def test_what_was_indexed_and_counted_stays_and_the_units_go(
    tasks: Tasks, pool: Pool, blobs: BlobStore, settings: VectorSettings
) -> None:
    task = replace(new_task(), blob_url=blobs.url("owner/a.pdf"))
    await tasks.insert(task)
    await TaskStore(pool, lambda: ENDED).fold(log_of(task, [(1, 1)]))
    vectors = await create_vector_store(settings, "a-model", 4)
    chunk = StoredChunk(
        chunk_id=task.task_id,
        document_id=task.document_id,
        task_id=task.task_id,
        owner=task.owner,
        filename=task.filename,
        version=1,
        text="text",
        first_page=1,
        last_page=1,
        vector=np.array([1, 0, 0, 0], dtype=np.float32),
    )
    await vectors.upsert([chunk])
    try:
        assert await clean_up(pool, blobs, KEPT, clock=just_old_enough) == 1
        assert await vectors.count(task.owner, task.document_id) == 1
    finally:
        await vectors.aclose()
    async with acquire(pool) as connection:
        assert await connection.fetchval("SELECT count(*) FROM task_units") == 0
        assert await connection.fetchval("SELECT sum(count)::int FROM duration_counts WHERE series = 'task'") == 1
