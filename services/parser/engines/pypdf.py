"""pypdf: pure Python, slow, with its own view of broken files; the second opinion."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from pypdf import PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, LimitReachedError, PyPdfError

from services.parser.engines import base
from shared.errors import EncryptedPdfError, PdfLimitError, PermanentError


class PypdfDocument:
    """A PDF opened by pypdf, which holds the whole file in memory.

    Raises
    ------
    EncryptedPdfError, EmptyPdfError, CorruptPdfError, PdfLimitError
        pypdf cannot open it.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        with _translated():
            self._reader = PdfReader(BytesIO(content))
            # Walks the page tree, and finds out only here that a password is missing.
            self.pages = len(self._reader.pages)
        base.check_pages(self.pages)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._reader.close()

    def metadata(self) -> dict[str, str]:
        """Return the document's metadata; none where it cannot be read, for the text matters more."""
        try:
            with _translated():
                found = self._reader.metadata
                return base.collect_metadata(lambda key: str(found.get(f"/{key}") or "")) if found else {}
        except PermanentError:
            return {}

    def text(self, page: int) -> str | None:
        """Return the raw text of a page, numbered from 1; raises `CorruptPdfError`, `PdfLimitError`."""
        with _translated(f"page {page}: "):
            return self._reader.pages[page - 1].extract_text()


@contextmanager
def _translated(where: str = "") -> Iterator[None]:
    """Turn whatever pypdf raises on hostile input into our errors."""
    try:
        yield
    except FileNotDecryptedError as error:
        raise base.encrypted() from error
    except (DependencyError, NotImplementedError) as error:
        raise EncryptedPdfError(f"The PDF uses a feature that is not supported ({where}{error}).") from error
    except LimitReachedError as error:
        raise PdfLimitError(f"The PDF needs more than a document may take ({where}{error}).") from error
    except MemoryError as error:
        raise base.out_of_memory() from error
    except RecursionError as error:
        raise base.corrupt(f"{where}its objects are nested too deeply") from error
    except PyPdfError as error:
        raise base.corrupt(f"{where}{error}") from error
    except Exception as error:  # ValueError, KeyError, struct.error and more, on broken files
        raise base.corrupt(f"{where}{type(error).__name__}: {error}") from error
