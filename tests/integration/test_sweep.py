"""What crashes leave behind, and what only looks like it."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from typing_extensions import override

from services.gateway.forms import FormFile
from services.gateway.outbox import Outbox
from services.gateway.tasks import Tasks
from services.gateway.uploads import Uploads
from services.tracker import sweep as sweep_module
from services.tracker.sweep import DISCARD_FROM, DISCARD_UNTIL, discard_again, sweep
from shared import blobs as blobs_module
from shared.blobs import BlobStore, StoredBlob
from shared.database.pool import Pool, acquire
from shared.errors import DependencyUnavailableError
from shared.events import TaskCanceled
from shared.kafka import Publisher
from shared.settings import BlobSettings
from shared.tasks import TaskRow, canceled
from shared.topics import TASK_CONTROL
from tests.support.builders import RecordingPublisher
from tests.support.eventually import before_long
from tests.support.forms import CONTENT_TYPE, END, arriving, file_part
from tests.support.kafka_lab import KafkaLab
from tests.support.task_events import START, new_task, over

AT_ONCE = timedelta(0)
FOREIGN = [
    "README.txt",
    "{task}.pdf",
    "owner/report.pdf",
    "owner/{task}.pdf.bak",
    "owner/{task}.txt",
    "owner/{task}.pdf#one",
    "backup/owner/{task}.pdf",
    "owner/{task}.pdf/{task}",
]


class Folder(BlobStore):
    """A store in a folder; `between` is what happens between the two looks of a sweep."""

    def __init__(self, path: Path) -> None:
        super().__init__(BlobSettings(blob_url=path.as_uri()))
        self.path = path
        self.between: Callable[[], Awaitable[object]] | None = None
        self.looks = 0

    @override
    async def listing(self) -> AsyncIterator[Sequence[StoredBlob]]:
        self.looks += 1
        if self.looks > 1 and self.between:
            await self.between()
        async for batch in super().listing():
            yield batch

    def lay(self, key: str) -> Path:
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def files(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


@pytest.fixture
def blobs(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def uploaded(tasks: Tasks, blobs: Folder, status: str = "pending") -> TaskRow:
    """Return a task whose blob and row are there."""
    task = over(new_task(), status, START) if status in ("completed", "failed", "canceled") else new_task()
    blobs.lay(f"owner/{task.task_id}.pdf")
    await tasks.insert(replace(task, status=status))
    return task


@pytest.mark.parametrize("left", ["{task}.pdf", "{task}.pdf#1", "{task}.pdf#12"])
async def test_what_an_upload_left_without_a_row_goes_and_nothing_else(
    tasks: Tasks, pool: Pool, blobs: Folder, left: str
) -> None:
    for status in ("pending", "running", "completed", "failed", "canceled"):
        await uploaded(tasks, blobs, status)
    before = blobs.files()
    blobs.lay(f"owner/{left.format(task=uuid4())}")
    blobs.lay(f"another owner/{left.format(task=uuid4())}")
    assert await sweep(pool, blobs, AT_ONCE) == 2
    assert blobs.files() == before
    assert await sweep(pool, blobs, AT_ONCE) == 0


async def test_foreign_files_stay(pool: Pool, blobs: Folder) -> None:
    for key in FOREIGN:
        blobs.lay(key.format(task=uuid4()))
    blobs.lay(f"owner/{str(uuid4()).upper()}.pdf")
    before = blobs.files()
    blobs.lay(f"owner/{uuid4()}.pdf")
    assert await sweep(pool, blobs, AT_ONCE) == 1
    assert blobs.files() == before


async def test_an_upload_is_known_by_the_name_that_the_gateway_gives_it(
    tasks: Tasks, pool: Pool, blobs: Folder
) -> None:
    outbox = Outbox(tasks, RecordingPublisher())
    form = FormFile(CONTENT_TYPE, arriving([file_part(b"%PDF-1.7"), END]))
    task = await Uploads(blobs, tasks, outbox, max_bytes=1000).accept(form, "owner")
    await outbox.aclose()
    assert await sweep(pool, blobs, AT_ONCE) == 0
    async with acquire(pool) as connection:
        await connection.execute("DELETE FROM tasks WHERE task_id = $1", task.task_id)
    assert await sweep(pool, blobs, AT_ONCE) == 1
    assert blobs.files() == set()


async def test_a_blob_whose_row_comes_later_stays(tasks: Tasks, pool: Pool, blobs: Folder) -> None:
    task = new_task()
    blobs.lay(f"owner/{task.task_id}.pdf")
    blobs.lay(f"owner/{uuid4()}.pdf")
    blobs.between = lambda: tasks.insert(task)
    assert await sweep(pool, blobs, AT_ONCE) == 1
    assert blobs.files() == {f"owner/{task.task_id}.pdf"}


async def test_an_upload_that_moves_or_has_just_come_stays(pool: Pool, blobs: Folder) -> None:
    moving, finished = (blobs.lay(f"owner/{uuid4()}.pdf#1") for _ in range(2))
    blobs.lay(f"owner/{uuid4()}.pdf")
    new = f"owner/{uuid4()}.pdf"

    async def go_on() -> None:
        os.utime(moving)
        finished.rename(str(finished).removesuffix("#1"))
        blobs.lay(new)

    blobs.between = go_on
    assert await sweep(pool, blobs, AT_ONCE) == 1
    assert blobs.files() == {f"owner/{moving.name}", f"owner/{finished.name.removesuffix('#1')}", new}


@pytest.mark.parametrize("modified", [0, 2**32])
async def test_a_blob_stays_for_an_hour_of_the_event_loop_whatever_other_clocks_say(
    pool: Pool, blobs: Folder, monkeypatch: pytest.MonkeyPatch, modified: int
) -> None:
    os.utime(blobs.lay(f"owner/{uuid4()}.pdf"), (modified, modified))
    rests: list[tuple[float, int]] = []

    async def rest(seconds: float) -> None:
        rests.append((seconds, len(blobs.files())))

    monkeypatch.setattr(asyncio, "sleep", rest)
    assert await sweep(pool, blobs) == 1
    assert rests == [(3600, 1)]


async def test_a_store_without_strays_is_looked_at_once(tasks: Tasks, pool: Pool, blobs: Folder) -> None:
    await uploaded(tasks, blobs)
    assert await before_long(sweep(pool, blobs)) == 0
    assert blobs.looks == 1


async def test_many_go_sweep_by_sweep(tasks: Tasks, pool: Pool, blobs: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "LISTED", 2)
    monkeypatch.setattr(sweep_module, "MAX_STRAYS", 3)
    await uploaded(tasks, blobs)
    before = blobs.files()
    for _ in range(5):
        blobs.lay(f"owner/{uuid4()}.pdf")
    assert [await sweep(pool, blobs, AT_ONCE) for _ in range(3)] == [3, 2, 0]
    assert blobs.files() == before


@pytest.mark.parametrize("look", ["first", "second"])
async def test_without_a_database_nothing_is_deleted(pool: Pool, blobs: Folder, look: str) -> None:
    blobs.lay(f"owner/{uuid4()}.pdf")
    blobs.between = pool.close
    if look == "first":
        await pool.close()
    with pytest.raises(DependencyUnavailableError):
        await sweep(pool, blobs, AT_ONCE)
    assert len(blobs.files()) == 1


async def test_cancellations_are_published_again_once_any_late_part_must_have_been_indexed(
    lab: KafkaLab, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    tick = timedelta(microseconds=1)
    ages = [DISCARD_FROM, DISCARD_FROM + tick, timedelta(hours=1), DISCARD_UNTIL, DISCARD_UNTIL + tick]
    rows = [over(new_task(), "canceled", START - age) for age in ages]
    others = [over(new_task(), status, START - timedelta(hours=1)) for status in ("completed", "failed")]
    for row in (*rows, *others, new_task()):
        await tasks.insert(row)
    ends = await lab.ends(TASK_CONTROL.name)
    assert await discard_again(pool, publisher, lambda: START) == 3
    records = await lab.read(TASK_CONTROL.name, 3, since=ends)
    events = [TaskCanceled.model_validate_json(record.value or b"") for record in records]
    assert {event.task_id: event for event in events} == {row.task_id: canceled(row) for row in rows[1:4]}
    assert [record.key for record in records] == [str(event.task_id).encode() for event in events]


async def test_many_cancellations_are_published_batch_by_batch(
    tasks: Tasks, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "BATCH", 2)
    minutes = (60, 60, 60, 61, 62)  # some at the very same time
    rows = [over(new_task(), "canceled", START - timedelta(minutes=ago)) for ago in minutes]
    for row in rows:
        await tasks.insert(row)
    publisher = RecordingPublisher()
    assert await discard_again(pool, publisher, lambda: START) == 5
    assert sorted(record.key or b"" for record in publisher.published) == sorted(
        str(row.task_id).encode() for row in rows
    )
