import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from services.parser.chunking import TextChunk
from services.parser.engines import Extraction, ParserOptions, Plan
from services.parser.engines.options import MEBIBYTE
from services.parser.workers import Workers
from shared.errors import DeadlineExceededError, PaperlaneError, PdfLimitError, WorkerLostError, error_code
from shared.shards import shards_of
from tests.support.hanging import children_of, ended, hanging_file, hung_reader
from tests.support.odd_pdfs.samples import SAMPLES
from tests.support.pdfs import ODD_PDFS, OddPdf

_GOOD = SAMPLES / "05-13-pages.pdf"
_PATIENCE = timedelta(seconds=30)  # for one odd file; the slowest takes 4 s on an idle machine


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def workers() -> AsyncIterator[Workers]:
    pool = Workers(ParserOptions(timeout=_PATIENCE))
    await pool.start()
    yield pool
    await pool.aclose()


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All odd files; making the bombs takes the longest, so it is done side by side."""
    folder = tmp_path_factory.mktemp("odd")

    def write(case: OddPdf) -> tuple[str, Path]:
        path = folder / case.name
        path.write_bytes(case.content())
        return case.name, path

    with ThreadPoolExecutor(2) as threads:
        return dict(threads.map(write, ODD_PDFS))


async def _parse(workers: Workers, path: Path) -> tuple[Plan, list[Extraction]]:
    plan, extraction = await workers.begin(path)
    if extraction is not None:
        return plan, [extraction]
    shards = shards_of(plan.pages)
    return plan, [await workers.extract(path, first, last, plan.engine) for first, last in shards]


def _chunks(extractions: list[Extraction]) -> list[TextChunk]:
    return [chunk for extraction in extractions for chunk in extraction.chunks]


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({case.name for case in ODD_PDFS}) == len(ODD_PDFS) >= 45


@pytest.mark.parametrize("case", ODD_PDFS, ids=lambda case: case.name)
def test_what_an_upload_refuses_has_no_header_at_its_start(case: OddPdf, odd_files: dict[str, Path]) -> None:
    has_header = b"%PDF-" in odd_files[case.name].read_bytes()[:1024]
    assert has_header == (case.expect.refused_at_upload is None)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", ODD_PDFS, ids=lambda case: case.name)
async def test_an_odd_pdf_ends_as_expected(case: OddPdf, workers: Workers, odd_files: dict[str, Path]) -> None:
    if case.expect.error:
        with pytest.raises(PaperlaneError) as refusal:
            await _parse(workers, odd_files[case.name])
        assert error_code(refusal.value) == case.expect.error, refusal.value
        return
    plan, extractions = await _parse(workers, odd_files[case.name])
    assert plan.pages == sum(extraction.pages for extraction in extractions) == case.expect.pages
    assert sum(extraction.pages_without_text for extraction in extractions) == case.expect.pages_without_text
    text = "\n".join(chunk.text for chunk in _chunks(extractions))
    assert [words for words in case.expect.contains if words not in text] == []
    assert text.encode().decode() == text


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("engine", ["auto", "pdfium", "pypdf"])
async def test_after_all_odd_pdfs_at_once_the_pool_still_serves(engine: str, odd_files: dict[str, Path]) -> None:
    workers = Workers(ParserOptions(engine=engine, timeout=_PATIENCE))  # type: ignore[arg-type]  # one of the three
    try:
        outcomes = await asyncio.gather(*(_parse(workers, path) for path in odd_files.values()), return_exceptions=True)
        unexpected = [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, PaperlaneError)]
        assert unexpected == []
        plan, extractions = await _parse(workers, _GOOD)
        assert plan.pages == 13
        assert _chunks(extractions)
    finally:
        await workers.aclose()


async def test_a_document_that_needs_too_much_memory_says_so(odd_files: dict[str, Path]) -> None:
    workers = Workers(ParserOptions(engine="pdfium", memory_limit=256 * MEBIBYTE))
    try:
        with pytest.raises(PdfLimitError, match="more than 256 MiB of memory"):
            await workers.extract(odd_files["20-bomb-flate1g-double.pdf"], 1, 1, "pdfium")
        assert (await workers.begin(_GOOD))[0].pages == 13
    finally:
        await workers.aclose()


async def test_work_that_takes_too_long_is_killed_and_worth_another_try(odd_files: dict[str, Path]) -> None:
    workers = Workers(ParserOptions(engine="pypdf", workers=1, timeout=timedelta(milliseconds=300)))
    try:
        with pytest.raises(DeadlineExceededError, match=r"longer than 0\.3 s"):
            await workers.extract(odd_files["text-4-mb-on-a-page.pdf"], 1, 1, "pypdf")
        assert (await workers.begin(SAMPLES / "01-one-page.pdf"))[0].pages == 1
    finally:
        await workers.aclose()


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    return hanging_file(tmp_path / "hanging.pdf")


async def test_cancelling_the_task_kills_the_child_that_works_for_it(hanging: Path) -> None:
    workers = Workers(ParserOptions(workers=1))
    try:
        await workers.start()
        children = children_of(workers)
        task = asyncio.create_task(workers.begin(hanging))
        async with hung_reader(hanging):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await ended(children)
        assert (await workers.begin(_GOOD))[0].pages == 13
    finally:
        await workers.aclose()


async def test_a_child_has_one_task_at_a_time_and_the_others_wait_for_their_turn(hanging: Path) -> None:
    workers = Workers(ParserOptions(workers=1, engine="pdfium", timeout=timedelta(seconds=0.5)))
    try:
        slow = asyncio.create_task(workers.begin(hanging))
        async with hung_reader(hanging):
            waiting = [asyncio.create_task(workers.begin(_GOOD)) for _ in range(2)]
            with pytest.raises(DeadlineExceededError):
                await slow
            assert [plan.pages for plan, _ in await asyncio.gather(*waiting)] == [13, 13]
    finally:
        await workers.aclose()


async def test_closing_the_pool_ends_its_children_and_whoever_waits(hanging: Path) -> None:
    workers = Workers(ParserOptions(workers=2))
    await workers.start()
    children = children_of(workers)
    task = asyncio.create_task(workers.begin(hanging))
    async with hung_reader(hanging):
        await workers.aclose()
        with pytest.raises(WorkerLostError, match="shutting down"):
            await task
        assert await ended(children)
    with pytest.raises(WorkerLostError, match="shutting down"):
        await workers.begin(_GOOD)


async def test_idle_children_that_are_killed_do_not_break_the_pool() -> None:
    workers = Workers(ParserOptions(workers=2))
    try:
        await workers.start()
        children = children_of(workers)
        for child in children:
            child.kill()
        assert await ended(children)
        assert (await workers.begin(_GOOD))[0].pages == 13
    finally:
        await workers.aclose()


async def test_a_child_killed_at_work_is_no_fault_of_the_document(hanging: Path) -> None:
    workers = Workers(ParserOptions(workers=1, engine="pdfium"))
    try:
        await workers.start()
        task = asyncio.create_task(workers.begin(hanging))
        async with hung_reader(hanging):
            children_of(workers)[0].kill()
            with pytest.raises(WorkerLostError, match="ended from outside"):
                await task
    finally:
        await workers.aclose()


_SERVICE = """
import asyncio, sys
from pathlib import Path
from services.parser.engines import ParserOptions
from services.parser.workers import Workers

async def main():
    workers = Workers(ParserOptions(workers=2))
    await workers.start()
    print(*workers._pool._pool_manager.worker_manager.workers, flush=True)
    await workers.begin(Path(sys.argv[1]))

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_no_child_outlives_a_service_that_is_killed(hanging: Path, tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(_SERVICE)
    service = await asyncio.create_subprocess_exec(sys.executable, script, hanging, stdout=subprocess.PIPE)
    assert service.stdout is not None
    pids = await service.stdout.readline()
    children = [psutil.Process(int(pid)) for pid in pids.split()]
    assert len(children) == 2
    async with hung_reader(hanging):
        service.kill()
        assert await ended(children)
    await service.wait()
