"""pdfium: the engine of Chrome, fast and tolerant."""

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import pypdfium2
from pypdfium2 import raw

from services.parser.engines import base
from shared.errors import EncryptedPdfError, PermanentError


class PdfiumDocument:
    """A PDF opened by pdfium.

    Raises
    ------
    EncryptedPdfError, EmptyPdfError, CorruptPdfError, PdfLimitError
        pdfium cannot open it.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(path)
        # The library's own way of opening takes a document without pages for a failure, and then reports whatever
        # failed before it in this process.
        handle = raw.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not handle:
            raise _refusal(raw.FPDF_GetLastError())
        self._document = pypdfium2.PdfDocument(handle)
        self.pages: int = len(self._document)
        try:
            self._check_pages()
        except PermanentError:
            self._document.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of what was read of it."""
        self._document.close()

    def metadata(self) -> dict[str, str]:
        """Return the document's metadata."""
        return base.collect_metadata(self._metadata_value)

    def text(self, page: int) -> str | None:
        """Return the raw text of a page, numbered from 1, None if blank; raises `CorruptPdfError`, `PdfLimitError`."""
        try:
            opened = self._document[page - 1]
            try:
                if raw.FPDFPage_CountObjects(opened) < 1:
                    return None
                return str(opened.get_textpage().get_text_range())
            finally:
                opened.close()  # its text page goes with it
        except pypdfium2.PdfiumError as error:
            raise base.corrupt(f"page {page}: {error}") from error
        except MemoryError as error:
            raise base.out_of_memory() from error

    def _check_pages(self) -> None:
        """Check that the last page is really there, for pdfium believes whatever count the page tree claims."""
        base.check_pages(self.pages)
        if not raw.FPDF_GetPageSizeByIndexF(self._document, self.pages - 1, raw.FS_SIZEF()):
            raise base.corrupt(f"it claims {self.pages:,} pages, but the last one is missing")

    def _metadata_value(self, key: str) -> str:
        # The library's own reader decodes strictly, and a title may hold half a surrogate pair.
        name = key.encode() + b"\0"
        size = raw.FPDF_GetMetaText(self._document, name, None, 0)
        buffer = ctypes.create_string_buffer(size)
        raw.FPDF_GetMetaText(self._document, name, buffer, size)
        return buffer.raw[: max(size - 2, 0)].decode("utf-16-le", "ignore")


def _refusal(code: int) -> PermanentError:
    """Translate pdfium's reason not to open a document."""
    match code:
        case raw.FPDF_ERR_PASSWORD:
            return base.encrypted()
        case raw.FPDF_ERR_SECURITY:
            return EncryptedPdfError("The PDF is encrypted with a scheme that is not supported.")
        case raw.FPDF_ERR_FORMAT:
            return base.corrupt("its structure is not that of a PDF")
        case _:
            return base.corrupt(f"pdfium's error {code}")
