"""Every odd PDF ends as it should, with the reason, and takes nothing down with it."""

import asyncio
from collections.abc import Iterator
from itertools import count, islice

import httpx
import pytest

from deploy.local import LocalStack
from tests.support.api import SAMPLES, Json, chunks, process
from tests.support.pdf_writer import Pdf, flate
from tests.support.pdfs import ODD_PDFS, OddPdf

AT_ONCE = asyncio.Semaphore(8)
"""So that the odd ones meet each other in the parsers."""


@pytest.fixture(scope="module", autouse=True)
def nothing_restarts(stack: LocalStack) -> Iterator[None]:
    """No service may die of any of them."""
    before = [(part.name, part.pid) for part in stack.components]
    yield
    assert [(part.name, part.pid) for part in stack.components] == before


async def test_there_are_forty_and_more() -> None:
    assert len({odd.name for odd in ODD_PDFS}) == len(ODD_PDFS) >= 40


@pytest.mark.timeout(600)
async def test_each_odd_pdf_ends_as_it_should(api: httpx.AsyncClient, stack: LocalStack) -> None:
    complaints = await asyncio.gather(*(complaint_about(api, stack, odd) for odd in ODD_PDFS))
    assert not list(filter(None, complaints))

    task = await process(api, SAMPLES / "01-one-page.pdf")
    assert task["status"] == "completed", "the stack still works after all of them"


@pytest.mark.timeout(300)
async def test_ten_megabytes_of_text_on_one_page_are_indexed(api: httpx.AsyncClient) -> None:
    lines = (
        b"1 0 0 1 50 %d Tm (line %d of a page without an end, as machines print them) Tj" % (n % 800, n)
        for n in count()
    )
    shown = b"BT /F1 8 Tf\n" + b"\n".join(islice(lines, 180_000)) + b"\nET"
    pdf = Pdf()
    pdf.page(flate(shown))

    task = await process(api, pdf.render(), "ten-megabytes.pdf")
    assert task["status"] == "completed", task["error"]
    assert task["result"]["content_length"] > 10_000_000
    assert task["result"]["pages_without_text"] == 0


async def complaint_about(api: httpx.AsyncClient, stack: LocalStack, odd: OddPdf) -> str | None:
    """Process an odd PDF, and say what is not as it should be."""
    async with AT_ONCE:
        content = await asyncio.to_thread(odd.content)
        if odd.expect.refused_at_upload is not None:
            response = await api.post("/upload", files={"file": (odd.name, content)})
            refused = response.status_code == 415 and response.json()["code"] == "not_a_pdf"
            return None if refused else f"{odd.name}: {response.status_code} {response.text}"
        task = await process(api, content, odd.name)
    return difference(odd, task) or await missing_text(stack, odd, task)


def difference(odd: OddPdf, task: Json) -> str | None:
    """Say where a task's end is another than expected."""
    expect = odd.expect
    if expect.error is not None:
        code = (task["error"] or {}).get("code")
        return None if (task["status"], code) == ("failed", expect.error) else f"{odd.name}: {task}"
    result = task["result"] or {}
    pages = (result.get("pages"), result.get("pages_without_text"))
    return None if pages == (expect.pages, expect.pages_without_text) else f"{odd.name}: {task}"


async def missing_text(stack: LocalStack, odd: OddPdf, task: Json) -> str | None:
    """Say which expected text is not in the index."""
    if not odd.expect.contains:
        return None
    indexed = "\n".join(row["text"] for row in await chunks(stack, task["result"]["document_id"]))
    missing = [text for text in odd.expect.contains if text not in indexed]
    return f"{odd.name}: {missing} not in {indexed[:200]!r}" if missing else None
