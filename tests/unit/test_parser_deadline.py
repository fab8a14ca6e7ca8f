"""The parser's first step under the stage runner, with real child processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from services.parser.engines import ParserOptions
from services.parser.parse import DocumentParser
from services.parser.workers import Workers
from shared.blobs import BlobStore
from shared.broker import Record
from shared.cancellations import Cancellations
from shared.events import DocumentSubmitted
from shared.settings import RETRY_DELAYS, BlobSettings
from shared.stage import Runtime, StageRunner
from shared.topics import CHUNKS_EXTRACTED, DOCUMENTS_SUBMITTED
from tests.support.builders import OTHER_TASK, TASK, RecordingPublisher, patience, record, submitted
from tests.support.hanging import children_of, ended, hanging_file, hung_reader
from tests.support.odd_pdfs.samples import SAMPLES

LIMIT = timedelta(seconds=1.5)
"""Far more than a good document takes, also on a busy machine."""

RETRY = DOCUMENTS_SUBMITTED.retry(RETRY_DELAYS[0])


class Parser:
    """The parser's first step with one child process, a hanging blob and a good one."""

    def __init__(self, folder: Path, workers: Workers, limit: timedelta) -> None:
        blobs = BlobStore(BlobSettings(blob_url=f"file://{folder}"))
        self.hanging = hanging_file(folder / "hanging.pdf")
        (folder / "good.pdf").write_bytes((SAMPLES / "01-one-page.pdf").read_bytes())
        self.url: Callable[[str], str] = blobs.url
        self.workers = workers
        self.publisher = RecordingPublisher()
        self.canceled = Cancellations()
        runtime = Runtime(self.publisher, self.canceled, unit_timeout=limit)
        parser = DocumentParser(workers, blobs, dimension=4)
        self.run = StageRunner(DOCUMENTS_SUBMITTED, DocumentSubmitted, parser.plan, runtime)

    def batch(self) -> tuple[Record, ...]:
        hanging = submitted(blob_url=self.url("hanging.pdf"))
        return record(hanging), *(record(submitted(task_id=OTHER_TASK, blob_url=self.url("good.pdf"))) for _ in "12")


@asynccontextmanager
async def parser_in(folder: Path, limit: timedelta) -> AsyncIterator[Parser]:
    workers = Workers(ParserOptions(workers=1, engine="pdfium"))
    try:
        await workers.start()
        yield Parser(folder, workers, limit)
    finally:
        await workers.aclose()


async def test_a_hanging_document_is_stopped_at_the_soft_limit_and_costs_others_none_of_their_time(
    tmp_path: Path,
) -> None:
    async with parser_in(tmp_path, LIMIT) as parser, patience():
        children = children_of(parser.workers)
        running = asyncio.create_task(parser.run(parser.batch()))
        async with hung_reader(parser.hanging):
            await running
            assert await ended(children)
    [retried] = parser.publisher.on(RETRY)
    assert dict(retried.headers)["error-code"] == b"deadline_exceeded"
    assert str(TASK).encode() in (retried.value or b"")
    good = [part.key for part in parser.publisher.on(CHUNKS_EXTRACTED.name)]
    assert good == [f"{OTHER_TASK}:0:0".encode()] * 2


async def test_a_hanging_document_is_stopped_as_soon_as_its_task_is_canceled(tmp_path: Path) -> None:
    async with parser_in(tmp_path, timedelta(minutes=5)) as parser, patience():
        children = children_of(parser.workers)
        running = asyncio.create_task(parser.run(parser.batch()))
        async with hung_reader(parser.hanging):
            parser.canceled.add(TASK)
            await running
            assert await ended(children)
    assert parser.publisher.on(RETRY) == []
    assert len(parser.publisher.on(CHUNKS_EXTRACTED.name)) == 2
