"""What a case of the corpus is."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What a user sees after an upload.

    Attributes
    ----------
    error
        Code of the error that the task fails with; None if it completes.
    refused_at_upload
        Why the gateway refuses the file with status 415, which it does if the bytes ``%PDF-`` do not occur in the
        first 1,024; `error` then says what the parser would answer. None if it accepts the file.
    pages, pages_without_text
        Of a task that completes.
    contains
        Texts that can be found in the document.
    """

    error: str | None = None
    refused_at_upload: str | None = None
    pages: int = 1
    pages_without_text: int = 0
    contains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OddPdf:
    """An odd PDF, or what somebody takes for one; `content` makes it, always the same."""

    name: str
    content: Callable[[], bytes]
    expect: Expect


def refused(reason: str) -> Expect:
    return Expect(error="not_a_pdf", refused_at_upload=reason)


def fails(code: str) -> Expect:
    return Expect(error=code)


def completes(*contains: str, pages: int = 1, pages_without_text: int = 0) -> Expect:
    return Expect(pages=pages, pages_without_text=pages_without_text, contains=contains)
