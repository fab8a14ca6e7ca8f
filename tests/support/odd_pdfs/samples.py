"""Real documents, kept in tests/data/samples."""

from functools import partial
from pathlib import Path

from tests.support.odd_pdfs.case import Expect, OddPdf, completes, fails, refused

SAMPLES = Path(__file__).parents[2] / "data" / "samples"


def _sample(name: str, expect: Expect) -> OddPdf:
    return OddPdf(name, partial((SAMPLES / name).read_bytes), expect)


CASES = [
    _sample("01-one-page.pdf", completes("Lorem ipsum dolor sit amet")),
    _sample("02-four-pages-outline.pdf", completes(pages=4)),
    _sample("03-two-column.pdf", completes("adipiscing", "consectetuer", pages=3)),
    _sample("04-arabic.pdf", completes("habibi")),
    _sample("05-13-pages.pdf", completes("parallel GP", pages=13)),
    _sample("06-cjk-ja-69-pages.pdf", completes("Debian", "パッケージ", pages=69)),
    _sample("11-encrypted-openpassword.pdf", fails("pdf_encrypted")),
    _sample("12-encrypted-aes256-user-pw.pdf", fails("pdf_encrypted")),
    _sample("13-encrypted-empty-user-pw.pdf", completes("Hello, here is some text", pages=4)),
    _sample("14-scanned-image-only.pdf", completes(pages=4, pages_without_text=4)),
    _sample("15-broken-xref.pdf", completes("parallel GP", pages=13)),
    _sample("16-truncated.pdf", fails("pdf_corrupt")),
    _sample("17-zero-pages.pdf", fails("pdf_without_pages")),
    _sample("18-empty.pdf", refused("empty file")),
    _sample("19-html-named.pdf", refused("HTML page")),
    _sample("20-bomb-flate1g-double.pdf", fails("pdf_limit_exceeded")),
]
