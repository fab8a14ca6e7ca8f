"""What an engine is, and what all engines agree on."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

from services.parser.text import normalise
from shared.errors import (
    CorruptPdfError,
    EmptyPdfError,
    EncryptedPdfError,
    NotAPdfError,
    PdfLimitError,
    PermanentError,
)

MAX_PAGES = 100_000
"""Most pages of a document. pypdf's own limit; a page tree of a few kB can claim millions."""

_METADATA_KEYS = ("Title", "Author", "Subject", "Keywords", "Creator", "Producer", "CreationDate", "ModDate")
_METADATA_LENGTH = 1000  # characters; enough for a title or an abstract, and it travels in an event

# Of two refusals the one further left tells a user more.
_TELLING: tuple[type[PermanentError], ...] = (
    EncryptedPdfError,
    PdfLimitError,
    NotAPdfError,
    CorruptPdfError,
    EmptyPdfError,
)


class Document(Protocol):
    """An open PDF, to be used in a `with` block.

    Attributes
    ----------
    pages
        Number of pages, at least 1.
    """

    pages: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    def metadata(self) -> dict[str, str]:
        """Return the document's title, author and the like, as far as there are any."""
        ...

    def text(self, page: int) -> str | None:
        """Return the raw text of a page, numbered from 1; None where the page draws nothing at all.

        Raises
        ------
        PermanentError
            This page cannot be read.
        """
        ...


def check_pages(pages: int) -> None:
    """Refuse a document without pages, or with more than any real one has.

    Raises
    ------
    EmptyPdfError, PdfLimitError
        See above.
    """
    if pages < 1:
        raise EmptyPdfError("The PDF has no pages.")
    if pages > MAX_PAGES:
        raise PdfLimitError(f"The PDF claims {pages:,} pages; at most {MAX_PAGES:,} are taken.")


def collect_metadata(value_of: Callable[[str], str | None]) -> dict[str, str]:
    """Read the usual metadata, each value normalised and cut; `value_of` returns nothing for what is missing."""
    values = ((key, normalise(value_of(key) or "").strip()[:_METADATA_LENGTH]) for key in _METADATA_KEYS)
    return {key: value for key, value in values if value}


def encrypted() -> EncryptedPdfError:
    """Return the error of a file that wants a password."""
    return EncryptedPdfError(
        "The PDF is protected with a password. Save a copy without one (open it, then print or export to PDF) "
        "and upload that."
    )


def corrupt(detail: object) -> CorruptPdfError:
    """Return the error of a file that is damaged beyond reading."""
    return CorruptPdfError(
        f"The PDF is damaged and cannot be read ({detail}). "
        "Opening it in a PDF viewer and saving it again may repair it."
    )


def out_of_memory() -> PdfLimitError:
    """Return the error of a document that does not fit into a child's memory."""
    return PdfLimitError("The PDF needs more memory to read than a document may take.")


def most_telling(errors: Iterable[PermanentError]) -> PermanentError:
    """Return the error that says most about why a document was refused; of equals, the last one."""
    ranks = {kind: rank for rank, kind in enumerate(_TELLING)}
    return min(reversed(list(errors)), key=lambda error: ranks.get(type(error), len(ranks)))
