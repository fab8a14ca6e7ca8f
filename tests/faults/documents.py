"""A seeded mix of documents, good and bad, and what is to become of each."""

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cli.sample import write_sample
from shared.tasks import TaskStatus
from tests.support.api import SAMPLES
from tests.support.odd_pdfs import bombs
from tests.support.pdf_writer import Pdf, pdf_of, stream


@dataclass(frozen=True)
class Document:
    """One PDF.

    Attributes
    ----------
    end
        How its task ends, if nobody cancels it.
    error
        Code of the error where that is a failure.
    """

    kind: str
    content: bytes
    end: TaskStatus = TaskStatus.COMPLETED
    error: str | None = None


@cache
def _sample(pages: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.pdf"
        write_sample(path, pages=pages)
        return path.read_bytes()


@cache
def _scan() -> bytes:
    pdf = Pdf()
    for _ in range(2):
        pdf.page(stream(b"10 10 200 300 re f"))
    return pdf.render()


@cache
def _short_pages(pages: int) -> bytes:
    return pdf_of(*(f"This is page {page}." for page in range(pages))).render()


@cache
def _bomb() -> bytes:
    [case] = (case for case in bombs.CASES if case.name == "bomb-flate-2-gib.pdf")
    return case.content()


def good(pages: int, copy: int = 0) -> Document:
    """Return a sound document; another `copy` is another document of the same text."""
    return Document(f"{pages} pages", _marked(_sample(pages), copy))


def scan(copy: int = 0) -> Document:
    """Return a document without any text."""
    return Document("scan", _marked(_scan(), copy))


def corrupt(copy: int = 0) -> Document:
    """Return a document that no engine can read."""
    content = (SAMPLES / "16-truncated.pdf").read_bytes()
    return Document("corrupt", _marked(content, copy), TaskStatus.FAILED, "pdf_corrupt")


def encrypted(copy: int = 0) -> Document:
    """Return a document that needs a password."""
    content = (SAMPLES / "11-encrypted-openpassword.pdf").read_bytes()
    return Document("encrypted", _marked(content, copy), TaskStatus.FAILED, "pdf_encrypted")


def many_shards(copy: int = 0) -> Document:
    """Return a document that keeps many children busy, but none for long: ten shards with a line on each page."""
    return Document("10 shards", _marked(_short_pages(640), copy))


def bomb(copy: int = 0) -> Document:
    """Return a document that takes more memory than a child may have, which kills it."""
    return Document("bomb", _marked(_bomb(), copy), TaskStatus.FAILED, "pdf_limit_exceeded")


def _marked(content: bytes, copy: int) -> bytes:
    return content + b"\n%% copy %d\n" % copy


MIX: dict[Callable[[int], Document] | None, int] = {
    lambda copy: good(1, copy): 38,
    lambda copy: good(3, copy): 22,
    lambda copy: good(200, copy): 10,
    scan: 8,
    corrupt: 6,
    encrypted: 6,
    None: 10,  # one of those before, once more
}
"""How many in a hundred documents are of a kind."""


def mixed(choice: random.Random) -> Iterator[Document]:
    """Yield documents without end, most of them small and new, some of them uploaded before."""
    before = [good(1, choice.getrandbits(32))]
    while True:
        [make] = choice.choices(list(MIX), list(MIX.values()))
        document = make(choice.getrandbits(32)) if make else choice.choice(before)
        before.append(document)
        yield document
