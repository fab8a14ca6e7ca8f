from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from services.parser.engines import Extraction, ParserOptions, Plan, begin, extract
from services.parser.parse import DocumentParser
from services.parser.workers import Workers
from shared.blobs import BlobMissingError, BlobStore
from shared.errors import EncryptedPdfError, NotAPdfError
from shared.events import PAGE_WEIGHT, ChunksExtracted, DocumentPlanned, PagesRequested, ShardExtracted
from shared.kafka import Outgoing
from shared.settings import BlobSettings
from tests.support import pdf_writer
from tests.support.builders import DOCUMENT, NOON, OWNER, TASK, pages_requested, submitted
from tests.support.forms import arriving

SAMPLES = Path(__file__).parents[1] / "data" / "samples"


class InThisProcess(Workers):
    """Runs the real steps without child processes, which have tests of their own."""

    def __init__(self, options: ParserOptions) -> None:
        self.options = options

    @override
    async def begin(self, path: Path) -> tuple[Plan, Extraction | None]:
        return begin(path, self.options)

    @override
    async def extract(self, path: Path, first_page: int, last_page: int, engine: str) -> Extraction:
        return extract(path, first_page, last_page, engine, self.options)


def pdf_of(*lines: str) -> bytes:
    """Return a PDF with a page for each line; a page without a line shows nothing."""
    pdf = pdf_writer.Pdf()
    for line in lines:
        pdf.page(pdf_writer.stream(pdf_writer.text(line)) if line else None)
    return pdf.render()


class Desk:
    """A parser with a blob store in a folder."""

    def __init__(self, folder: Path, *, chunk_size: int = 100) -> None:
        self.blobs = BlobStore(BlobSettings(blob_url=f"file://{folder}"))
        options = ParserOptions(chunk_size=chunk_size, chunk_overlap=0)
        self.parser = DocumentParser(InThisProcess(options), self.blobs, dimension=4)

    async def lay(self, pdf: bytes) -> str:
        url = self.blobs.url("alice/x.pdf")
        await self.blobs.write(url, arriving([pdf]))
        return url

    async def plan(self, pdf: bytes) -> list[Outgoing]:
        return await self.parser.plan(submitted(blob_url=await self.lay(pdf)))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def on(topic: str, outputs: list[Outgoing], event: type[Any]) -> list[Any]:
    return [event.model_validate_json(output.value or b"") for output in outputs if output.topic == topic]


def plan_of(outputs: list[Outgoing]) -> DocumentPlanned:
    planned: DocumentPlanned = on("task.events", outputs[:1], DocumentPlanned)[0]
    return planned


def report_of(outputs: list[Outgoing]) -> ShardExtracted:
    report: ShardExtracted = on("task.events", outputs[-1:], ShardExtracted)[0]
    return report


async def test_a_short_document_is_planned_and_extracted_at_once(desk: Desk) -> None:
    outputs = await desk.plan(pdf_of("Hello world", "Second page"))
    assert [output.topic for output in outputs] == ["task.events", "chunks.extracted", "task.events"]
    assert [output.key for output in outputs] == [key.encode() for key in (f"{TASK}", f"{TASK}:0:0", f"{TASK}")]
    planned, report = plan_of(outputs), report_of(outputs)
    assert (planned.task_id, planned.pages, planned.shards, planned.engine) == (TASK, 2, 1, "pdfium")
    assert (report.shard, report.pages, report.pages_without_text, report.parts) == (0, 2, 0, 1)
    assert report.characters == len("Hello world" + "Second page")
    assert planned.started_at <= planned.finished_at <= report.finished_at
    [part] = on("chunks.extracted", outputs, ChunksExtracted)
    assert (part.document_id, part.owner, part.filename, part.submitted_at) == (DOCUMENT, OWNER, "x.pdf", NOON)
    assert (part.shard, part.part, part.weight) == (0, 0, 2 * PAGE_WEIGHT)
    assert "\n".join(chunk.text for chunk in part.chunks) == "Hello world\nSecond page"
    assert (part.chunks[0].first_page, part.chunks[-1].last_page) == (1, 2)
    assert len(part.chunks) == report.chunks


async def test_a_long_document_is_cut_into_shards_that_cover_each_page_once(desk: Desk) -> None:
    outputs = await desk.plan(pdf_of(*(f"page {n}" for n in range(1, 131))))
    planned = plan_of(outputs)
    requests = on("pages.requested", outputs, PagesRequested)
    assert (planned.pages, planned.shards) == (130, 3)
    assert [output.topic for output in outputs[1:]] == ["pages.requested"] * 3
    assert [output.key for output in outputs[1:]] == [f"{TASK}:{shard}".encode() for shard in range(3)]
    pages = [page for request in requests for page in range(request.first_page, request.last_page + 1)]
    assert pages == list(range(1, 131))
    assert {(request.engine, request.document_id, request.filename) for request in requests} == {
        ("pdfium", DOCUMENT, "x.pdf")
    }
    assert {request.blob_url for request in requests} == {desk.blobs.url("alice/x.pdf")}


async def test_a_shard_brings_the_text_of_its_pages_and_no_other(desk: Desk) -> None:
    url = await desk.lay(pdf_of(*(f"page {n}" for n in range(1, 11))))
    outputs = await desk.parser.extract(pages_requested(blob_url=url, shard=1, first_page=5, last_page=8))
    report, [part] = report_of(outputs), on("chunks.extracted", outputs, ChunksExtracted)
    assert (report.shard, report.pages) == (1, 4)
    assert (part.shard, part.weight) == (1, 4 * PAGE_WEIGHT)
    assert part.chunks[0].text == "page 5\npage 6\npage 7\npage 8"
    assert (part.chunks[0].first_page, part.chunks[0].last_page) == (5, 8)


async def test_many_chunks_leave_in_parts_whose_weights_sum_up_to_the_pages(tmp_path: Path) -> None:
    pages = [f"a line of text that stands on page {n}" for n in range(1, 61)]
    desk = Desk(tmp_path, chunk_size=20)
    outputs = await desk.plan(pdf_of(*pages))
    report, parts = report_of(outputs), on("chunks.extracted", outputs, ChunksExtracted)
    assert report.parts == len(parts) > 1
    assert [part.part for part in parts] == list(range(len(parts)))
    assert {part.parts for part in parts} == {len(parts)}
    assert sum(part.weight for part in parts) == 60 * PAGE_WEIGHT
    assert sum(len(part.chunks) for part in parts) == report.chunks
    assert all([chunk.n for chunk in part.chunks] == list(range(len(part.chunks))) for part in parts)
    assert "page 60" in " ".join(chunk.text for chunk in parts[-1].chunks)


async def test_only_the_parts_that_are_wanted_leave_as_they_left_before(tmp_path: Path) -> None:
    desk = Desk(tmp_path, chunk_size=20)
    url = await desk.lay(pdf_of(*(f"a line of text that stands on page {n}" for n in range(1, 61))))
    wanted = pages_requested(blob_url=url, shard=1, first_page=1, last_page=60, parts=(1, 99))
    everything = await desk.parser.extract(wanted.model_copy(update={"parts": None}))
    outputs = await desk.parser.extract(wanted)
    assert on("chunks.extracted", outputs, ChunksExtracted) == on("chunks.extracted", everything, ChunksExtracted)[1:2]
    assert outputs[0].key == f"{TASK}:1:1".encode()
    ignored = {"started_at", "finished_at"}
    assert report_of(outputs).model_dump(exclude=ignored) == report_of(everything).model_dump(exclude=ignored)


async def test_a_document_without_text_has_no_parts_but_a_report(desk: Desk) -> None:
    outputs = await desk.plan((SAMPLES / "14-scanned-image-only.pdf").read_bytes())
    report = report_of(outputs)
    assert [output.topic for output in outputs] == ["task.events", "task.events"]
    assert (report.parts, report.chunks, report.characters) == (0, 0, 0)
    assert report.pages_without_text == report.pages == plan_of(outputs).pages


async def test_the_same_document_twice_gives_the_same_chunks(desk: Desk) -> None:
    pdf = (SAMPLES / "02-four-pages-outline.pdf").read_bytes()
    first, second = [on("chunks.extracted", await desk.plan(pdf), ChunksExtracted) for _ in range(2)]
    assert first == second != []


@pytest.mark.parametrize(
    ("name", "error"),
    [("12-encrypted-aes256-user-pw.pdf", EncryptedPdfError), ("19-html-named.pdf", NotAPdfError)],
)
async def test_a_document_that_cannot_be_read_is_refused_with_the_reason(
    desk: Desk, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await desk.plan((SAMPLES / name).read_bytes())


async def test_a_blob_that_is_gone_is_no_reason_to_try_again(desk: Desk) -> None:
    with pytest.raises(BlobMissingError, match="no longer in the blob store"):
        await desk.parser.plan(submitted(blob_url=desk.blobs.url("alice/gone.pdf")))
