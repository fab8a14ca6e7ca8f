"""The two steps of parsing, as pure functions of a local file. They run in a child process (see `workers.py`).

With `engine=auto` pypdf gives a second opinion: on a whole document that pdfium cannot open, and on single pages
that pdfium cannot read or finds no text on.
"""

import signal
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType

from services.parser.chunking import TextChunk, chunks_of
from services.parser.engines import base
from services.parser.engines.options import EngineName, ParserOptions
from services.parser.engines.pdfium import PdfiumDocument
from services.parser.engines.pypdf import PypdfDocument
from services.parser.text import normalise
from shared.errors import PermanentError
from shared.pdf import HEADER_WINDOW, check_header
from shared.shards import shards_of

SECOND_OPINION_BUDGET = timedelta(seconds=45)
"""Processor time that pypdf may take for the pages of one shard on which pdfium found no text. Enough for a shard
of scans (1 s); a shard of maps with millions of strokes must not run into the hard limit of 300 s for nothing."""


KEPT_DOCUMENTS = 4
"""Documents that a child keeps open: as many large ones as it usually has shards of at the same time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a document is made of.

    Attributes
    ----------
    pages
        Number of pages, at least 1.
    engine
        The engine that could open it, and is to extract it: `pdfium` or `pypdf`.
    metadata
        Title, Author and the like, as far as there are any.
    """

    pages: int
    engine: str
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True)
class Extraction:
    """The text of a range of pages.

    Attributes
    ----------
    chunks
        The text, in the order of the pages.
    pages
        Pages in the range.
    pages_without_text
        Those of them that gave no text: scans, blank pages, and pages that no engine can read.
    characters
        Length of the pages' normalised text.
    engine
        The engine that was asked first.
    """

    chunks: list[TextChunk]
    pages: int
    pages_without_text: int
    characters: int
    engine: str


@dataclass(slots=True)
class _Reading:
    """Text by page, which of these pages draw nothing, and why others could not be read.

    `document_pages` is how many pages the engine sees in the whole document; None if it could not open it.
    """

    document_pages: int | None = None
    texts: dict[int, str] = field(default_factory=dict)
    blank: set[int] = field(default_factory=set)
    failures: dict[int, PermanentError] = field(default_factory=dict)


class _BudgetSpentError(BaseException):
    """Not an `Exception`: the libraries catch these broadly."""


def plan(path: Path, options: ParserOptions) -> Plan:
    """Find out how many pages a file has, and with which engine.

    Raises
    ------
    NotAPdfError, CorruptPdfError, EncryptedPdfError, EmptyPdfError, PdfLimitError
        No engine can open it; of several reasons the more telling one.
    """
    with path.open("rb") as file:
        check_header(file.read(HEADER_WINDOW))
    failures: list[PermanentError] = []
    for engine in options.engines:
        try:
            with _open(engine, path) as document:
                return Plan(document.pages, engine, document.metadata())
        except PermanentError as error:
            failures.append(error)
    raise base.most_telling(failures)


def begin(path: Path, options: ParserOptions) -> tuple[Plan, Extraction | None]:
    """Plan a document, and extract it at once where it is a single shard: most documents are, and one call is cheaper.

    Raises
    ------
    NotAPdfError, CorruptPdfError, EncryptedPdfError, EmptyPdfError, PdfLimitError
        No engine can open it, or not one page of it can be read.
    """
    found = plan(path, options)
    if len(shards_of(found.pages)) > 1:
        return found, None
    return found, extract(path, 1, found.pages, found.engine, options)


def extract(path: Path, first_page: int, last_page: int, engine: str, options: ParserOptions) -> Extraction:
    """Extract and chunk the text of a range of pages, both ends included.

    Parameters
    ----------
    engine
        The engine of the document's plan; options that name one engine overrule it.

    Raises
    ------
    CorruptPdfError, EncryptedPdfError, EmptyPdfError, PdfLimitError
        Not one page of the range can be read.
    """
    if not 1 <= first_page <= last_page:
        raise ValueError(f"a range of pages goes up from 1 or more, not from {first_page} to {last_page}")
    numbers = range(first_page, last_page + 1)
    first_engine = _engine_name(engine) if options.engine == "auto" else options.engine
    reading = _read(first_engine, path, numbers)
    if first_engine == "pdfium" and options.engine == "auto":
        _ask_pypdf(reading, path, numbers)
    if len(reading.failures) == len(numbers):
        raise base.most_telling(reading.failures.values())
    pages = [(number, text) for number in numbers if (text := reading.texts.get(number))]
    return Extraction(
        chunks=chunks_of(pages, options.chunk_size, options.chunk_overlap),
        pages=len(numbers),
        pages_without_text=len(numbers) - len(pages),
        characters=sum(len(text) for _, text in pages),
        engine=first_engine,
    )


def _engine_name(name: str) -> EngineName:
    if name == "pdfium":
        return "pdfium"
    if name == "pypdf":
        return "pypdf"
    raise ValueError(f"unknown PDF engine {name!r}; it is pdfium or pypdf")


@contextmanager
def _open(engine: EngineName, path: Path) -> Iterator[base.Document]:
    """Lend a document. Those of pdfium stay open for the next steps, which are often about the same files.

    Opening a large file costs as much as reading 15 of its pages, and its fonts are loaded anew. A document of pypdf
    would keep far more memory than it saves time.
    """
    if engine == "pypdf":
        with PypdfDocument(path) as document:
            yield document
        return
    with _open_documents.lend(path) as document:
        yield document


class _OpenDocuments:
    """The documents that this process keeps open: the last few that pdfium read without a failure."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], PdfiumDocument] = OrderedDict()

    @contextmanager
    def lend(self, path: Path) -> Iterator[base.Document]:
        """Lend the document of a path; it is opened unless it is kept, and the file is still the same."""
        stat = path.stat()
        identity = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        document = self._kept.pop(identity, None) or PdfiumDocument(path)
        try:
            yield document
        except BaseException:
            document.close()
            raise
        self._kept[identity] = document
        if len(self._kept) > KEPT_DOCUMENTS:
            _, oldest = self._kept.popitem(last=False)
            oldest.close()


_open_documents = _OpenDocuments()


def _read(engine: EngineName, path: Path, numbers: Iterable[int], into: _Reading | None = None) -> _Reading:
    """Read pages; a document that cannot be opened fails on each of them."""
    reading = into or _Reading()
    try:
        with _open(engine, path) as document:
            reading.document_pages = document.pages
            for number in numbers:
                _read_page(document, number, reading)
    except PermanentError as error:
        reading.failures.update(dict.fromkeys(numbers, error))
    return reading


def _read_page(document: base.Document, number: int, reading: _Reading) -> None:
    try:
        raw = document.text(number)
    except PermanentError as error:
        reading.failures[number] = error
        return
    text = normalise(raw or "")
    reading.texts[number] = text if text.strip() else ""
    if raw is None:
        reading.blank.add(number)


def _ask_pypdf(reading: _Reading, path: Path, numbers: Iterable[int]) -> None:
    """Ask for a second opinion on the pages without text, and take it where there is more to it.

    Blank pages among others with text are what they seem; asking would cost pypdf a walk over the whole page tree.
    """
    silent = [number for number in numbers if not reading.texts.get(number)]
    if reading.blank.issuperset(silent) and any(reading.texts.values()):
        return
    second = _Reading()
    try:
        with _processor_time(SECOND_OPINION_BUDGET):
            _read("pypdf", path, silent, into=second)
    except _BudgetSpentError:
        pass  # what was read until then counts; for the other pages pdfium's word stands
    if reading.document_pages not in {None, second.document_pages}:
        return  # pypdf leaves out pages that are missing, so that its page 7 may be pdfium's page 8
    for number in silent:
        first_failure, second_failure = reading.failures.get(number), second.failures.get(number)
        if number in second.texts:
            reading.texts[number] = second.texts[number]
            reading.failures.pop(number, None)
        elif first_failure and second_failure:
            reading.failures[number] = base.most_telling([first_failure, second_failure])


@contextmanager
def _processor_time(budget: timedelta) -> Iterator[None]:
    """Interrupt the Python code of the body once it has used its processor time. Main thread only."""

    def spent(_signal: int, _frame: FrameType | None) -> None:
        raise _BudgetSpentError

    before = signal.signal(signal.SIGVTALRM, spent)
    signal.setitimer(signal.ITIMER_VIRTUAL, budget.total_seconds())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
