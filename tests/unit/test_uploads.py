import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from aiokafka.errors import KafkaTimeoutError
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from structlog.testing import capture_logs

from services.gateway import outbox as outbox_module
from services.gateway.forms import FormFile
from services.gateway.outbox import Outbox
from services.gateway.problems import FileMissingError, MalformedUploadError, UploadTooLargeError
from services.gateway.uploads import PIECE, Intake, Uploads
from shared.blobs import BlobStore
from shared.database.pool import NoConnectionError
from shared.errors import DependencyUnavailableError, NotAPdfError
from shared.events import DocumentSubmitted, document_id
from shared.pdf import HEADER_WINDOW
from shared.settings import BlobSettings
from shared.tasks import TaskStatus, submitted
from tests.support.builders import NOON, OWNER, RecordingPublisher, TasksInMemory, patience
from tests.support.eventually import eventually
from tests.support.forms import CONTENT_TYPE, END, arriving, file_part, part

PDF = b"%PDF-1.7\n" + b"x" * 5000
LIMIT = 10_000


async def taken_in(pieces: Iterable[bytes], limit: int = LIMIT) -> tuple[Intake, list[bytes]]:
    intake = Intake(limit)
    return intake, [piece async for piece in intake.passing(arriving(pieces))]


async def test_a_file_passes_unchanged_with_its_size_and_hash() -> None:
    intake, passed = await taken_in([PDF[:7], PDF[7:3000], PDF[3000:]])
    assert b"".join(passed) == PDF
    assert (intake.size, intake.sha256) == (len(PDF), hashlib.sha256(PDF).hexdigest())


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=8))
async def test_any_pieces_give_the_same_size_and_hash(noise: bytes, cuts: list[int]) -> None:
    content = b"%PDF-" + noise
    bounds = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    pieces = [content[start:end] for start, end in pairwise(bounds)]
    intake, passed = await taken_in(pieces)
    assert b"".join(passed) == content
    assert (intake.size, intake.sha256) == (len(content), hashlib.sha256(content).hexdigest())


async def test_a_file_of_exactly_the_limit_passes() -> None:
    content = PDF.ljust(LIMIT, b"x")
    _, passed = await taken_in([content[:-1], content[-1:]])
    assert sum(map(len, passed)) == LIMIT


async def test_a_file_of_a_byte_more_is_refused_and_the_limit_named() -> None:
    with pytest.raises(UploadTooLargeError, match="larger than 10,000 bytes"):
        await taken_in([PDF.ljust(LIMIT, b"x"), b"x"])


async def test_a_file_beyond_the_limit_is_refused_before_its_end() -> None:
    asked: list[int] = []

    def endless() -> Iterable[bytes]:
        for number in range(10**6):
            asked.append(number)
            yield PDF

    with pytest.raises(UploadTooLargeError):
        await taken_in(endless())
    assert asked == [0, 1]


async def test_a_header_that_comes_byte_by_byte_is_found() -> None:
    _, passed = await taken_in([PDF[at : at + 1] for at in range(20)])
    assert b"".join(passed) == PDF[:20]


async def test_a_header_at_the_end_of_the_window_is_found_and_beyond_it_is_not() -> None:
    last = b"\n" * (HEADER_WINDOW - 5) + b"%PDF-1.7"
    assert b"".join((await taken_in([last]))[1]) == last
    with pytest.raises(NotAPdfError, match=r"first 1,024 bytes have no %PDF- header"):
        await taken_in([b"\n" + last])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"PK\x03\x04" + b"x" * 3000, "a ZIP archive or an Office document"),
        (b"\n<html>", "an HTML or XML page"),
        (b"plain text", "no %PDF- header"),
    ],
)
async def test_a_file_that_is_no_pdf_is_refused_with_what_it_looks_like(content: bytes, reason: str) -> None:
    with pytest.raises(NotAPdfError, match=reason):
        await taken_in([content])


async def test_nothing_of_what_is_no_pdf_is_passed_on() -> None:
    passing = Intake(10 * PIECE).passing(arriving([b"x" * PIECE, b"x" * PIECE]))
    with pytest.raises(NotAPdfError):
        await anext(passing)


async def test_small_pieces_are_joined_and_memory_stays_bounded() -> None:
    arrived = 64 * 1024
    content = [b"%PDF-".ljust(arrived, b"x")] * 50
    _, passed = await taken_in(content, limit=50 * arrived)
    assert [len(piece) for piece in passed] == [PIECE, PIECE, PIECE, 2 * arrived]


class Door:
    """Uploads into a folder, with what is behind them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks = TasksInMemory()
        self.publisher = RecordingPublisher()
        blobs = BlobStore(BlobSettings(blob_url=f"file://{folder}"))
        self.outbox = Outbox(self.tasks, self.publisher, clock=lambda: NOON)
        self.uploads = Uploads(blobs, self.tasks, self.outbox, max_bytes=LIMIT, clock=lambda: NOON)

    async def upload(self, body: Iterable[bytes] | AsyncIterator[bytes], content_type: str = CONTENT_TYPE) -> UUID:
        pieces = body if isinstance(body, AsyncIterator) else arriving(body)
        task = await self.uploads.accept(FormFile(content_type, pieces), OWNER)
        return task.task_id

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    door = Door(tmp_path / "blobs")
    yield door
    door.publisher.gate.set()
    await door.outbox.aclose()


async def test_an_upload_is_a_blob_and_a_pending_row(door: Door) -> None:
    task_id = await door.upload([file_part(PDF, b"../\xc3\xa9.pdf") + END])
    task = door.tasks.rows[task_id]
    sha256 = hashlib.sha256(PDF).hexdigest()
    assert (task.status, task.version, task.filename, task.owner) == (TaskStatus.PENDING, 1, "../é.pdf", OWNER)
    assert (task.size, task.sha256, task.document_id) == (len(PDF), sha256, document_id(OWNER, sha256))
    assert (task.created_at, task.updated_at) == (NOON, NOON)
    assert [Path(urlsplit(task.blob_url).path)] == door.files()
    assert door.files()[0].read_bytes() == PDF


async def test_the_filename_is_no_part_of_where_the_blob_lies(door: Door) -> None:
    task_id = await door.upload([file_part(PDF, b"../../../etc/cron.d/x") + END])
    assert door.files() == [door.folder / OWNER / f"{task_id}.pdf"]


async def test_the_same_bytes_twice_are_two_tasks_of_one_document(door: Door) -> None:
    first, second = [door.tasks.rows[await door.upload([file_part(PDF) + END])] for _ in range(2)]
    assert first.task_id != second.task_id
    assert first.document_id == second.document_id
    assert len(door.files()) == 2


async def test_an_upload_is_published_and_leaves_the_outbox(door: Door) -> None:
    task_id = await door.upload([file_part(PDF) + END])
    await door.outbox.aclose()
    [sent] = door.publisher.published
    assert (sent.topic, sent.key) == ("documents.submitted", str(task_id).encode())
    assert DocumentSubmitted.model_validate_json(sent.value or b"") == submitted(door.tasks.rows[task_id])
    assert door.tasks.dispatched == {task_id: NOON}


def truncated() -> Iterable[bytes]:
    return [file_part(PDF)[:-100]]


def lost() -> Iterable[bytes]:
    yield file_part(PDF)[:-100]
    raise ClientDisconnect


REFUSED: dict[str, tuple[Callable[[], Iterable[bytes]], type[Exception]]] = {
    "too large": (lambda: [file_part(PDF * 2), END], UploadTooLargeError),
    "too large at its last byte": (lambda: [file_part(PDF.ljust(LIMIT + 1)), END], UploadTooLargeError),
    "no PDF": (lambda: [file_part(b"x" * 5000) + END], NotAPdfError),
    "no PDF, and short": (lambda: [file_part(b"x") + END], NotAPdfError),
    "empty": (lambda: [file_part(b"") + END], NotAPdfError),
    "no file": (lambda: [part(b"v", b'name="a"') + END], FileMissingError),
    "broken off": (truncated, MalformedUploadError),
    "no form": (lambda: [b"nonsense"], MalformedUploadError),
    "connection lost": (lost, ClientDisconnect),
}


@pytest.mark.parametrize(("body", "error"), REFUSED.values(), ids=REFUSED)
async def test_nothing_remains_of_an_upload_that_was_refused(
    door: Door, body: Callable[[], Iterable[bytes]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await door.upload(body())
    await door.outbox.aclose()
    assert (door.files(), door.tasks.rows, door.publisher.published) == ([], {}, [])


async def test_nothing_remains_of_an_upload_whose_row_could_not_be_written(door: Door) -> None:
    door.tasks.error = NoConnectionError("the database does not answer")
    with pytest.raises(DependencyUnavailableError, match="database"):
        await door.upload([file_part(PDF) + END])
    assert (door.files(), door.publisher.published) == ([], [])


async def test_the_blob_of_an_upload_whose_row_may_have_been_written_stays(door: Door) -> None:
    door.tasks.error = DependencyUnavailableError("the database broke off")
    with pytest.raises(DependencyUnavailableError, match="broke off"):
        await door.upload([file_part(PDF) + END])
    assert len(door.files()) == 1


async def test_nothing_remains_of_an_upload_that_was_cancelled(door: Door) -> None:
    half_way = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield file_part(PDF)[:-100]
        half_way.set()
        await asyncio.Event().wait()

    uploading = asyncio.create_task(door.upload(stalling()))
    async with patience():
        await half_way.wait()
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading

    async def nothing_remains() -> None:
        assert (door.files(), door.tasks.rows) == ([], {})

    await eventually(nothing_remains)  # the blob store's own threads clear up


async def test_a_blob_store_that_cannot_write_is_a_dependency_that_is_away(door: Door) -> None:
    (door.folder / OWNER).write_bytes(b"a file where a folder should be")
    with pytest.raises(DependencyUnavailableError, match="blob store cannot take the upload"):
        await door.upload([file_part(PDF) + END])
    assert door.tasks.rows == {}


async def test_a_publish_that_hangs_does_not_delay_the_answer(door: Door) -> None:
    door.publisher.gate.clear()
    async with patience():
        task_id = await door.upload([file_part(PDF) + END])
        await door.publisher.asked.wait()
    assert task_id in door.tasks.rows
    assert door.tasks.dispatched == {}
    door.publisher.gate.set()
    await door.outbox.aclose()
    assert door.tasks.dispatched == {task_id: NOON}


async def test_a_publish_that_hangs_is_left_to_the_dispatcher(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "PUBLISH_DEADLINE", timedelta(milliseconds=1))
    door.publisher.gate.clear()
    with capture_logs() as lines:
        task_id = await door.upload([file_part(PDF) + END])
        async with patience():
            await door.outbox.aclose()
    [line] = lines
    assert (line["event"], line["task_id"], line["status"]) == ("left to the dispatcher", str(task_id), "pending")
    assert (door.tasks.dispatched, door.publisher.published) == ({}, [])
    assert len(door.files()) == 1


async def test_a_producer_that_could_not_publish_is_given_no_more_until_the_broker_answers(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "PUBLISH_DEADLINE", timedelta(milliseconds=1))
    door.publisher.gate.clear()
    for asked in (True, False):
        door.publisher.asked.clear()
        await door.upload([file_part(PDF) + END])
        await door.outbox.aclose()
        assert door.publisher.asked.is_set() == asked
    door.publisher.gate.set()
    monkeypatch.undo()
    task_id = await door.upload([file_part(PDF) + END])
    await door.outbox.aclose()
    assert door.tasks.dispatched == {task_id: NOON}


@pytest.mark.parametrize("error", [KafkaTimeoutError(), DependencyUnavailableError("not connected to Kafka yet")])
async def test_a_publish_that_fails_is_left_to_the_dispatcher(door: Door, error: Exception) -> None:
    door.publisher.error = error
    task_id = await door.upload([file_part(PDF) + END])
    await door.outbox.aclose()
    assert list(door.tasks.rows) == [task_id]
    assert door.tasks.dispatched == {}


async def test_uploads_at_the_same_time_do_not_mix(door: Door) -> None:
    contents = [b"%PDF-" + bytes([n]) * 3000 for n in range(10)]
    task_ids = await asyncio.gather(*(door.upload([file_part(c)[:2000], file_part(c)[2000:], END]) for c in contents))
    stored = [(door.folder / OWNER / f"{task_id}.pdf").read_bytes() for task_id in task_ids]
    assert stored == contents
