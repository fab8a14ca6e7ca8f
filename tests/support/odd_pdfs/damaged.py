"""Files that are no PDF, or were one before something happened to them."""

import io
import random
import zipfile
import zlib

from tests.support.odd_pdfs.case import OddPdf, completes, fails, refused
from tests.support.pdf_writer import HEADER, Pdf, flate, pdf_of, stream, text


def _sound() -> bytes:
    return pdf_of("First page of a sound file", "Second page").render()


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), "<xml/>")
    return buffer.getvalue()


def _png() -> bytes:
    return bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
        "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )


def _cut_in_stream() -> bytes:
    whole = pdf_of("cut", "cut").render()
    return whole[: whole.index(b"Tj")]


def _cut_in_xref() -> bytes:
    whole = _sound()
    return whole[: whole.index(b"xref\n0") + 30]


def _cut_in_trailer() -> bytes:
    whole = _sound()
    return whole[: whole.index(b"startxref")]


def _wrong_length() -> bytes:
    pdf = Pdf()
    pdf.page(stream(text("Length is a lie"), length=5))
    pdf.page(stream(text("Length is far too big"), length=99_999))
    return pdf.render()


def _junk_in_flate() -> bytes:
    pdf = pdf_of("Readable page")
    body = bytearray(flate(text("never to be read") * 50))
    middle = body.index(b"stream\n") + 12
    body[middle : middle + 20] = b"\xff" * 20
    pdf.page(bytes(body))
    return pdf.render()


def _crypt_filter() -> bytes:
    """A filter that changes nothing, but that pdfium does not know: it sees a blank page."""
    pdf = Pdf()
    pdf.page(stream(zlib.compress(text("behind a crypt filter")), b"/Filter [/Crypt /FlateDecode]"))
    return pdf.render()


def _no_catalog() -> bytes:
    pdf = pdf_of("x")
    pdf.objects[1] = b"<< /Type /Nothing >>"
    return pdf.render()


def _random_after_header() -> bytes:
    return HEADER + random.Random(1).randbytes(50_000)


CASES = [
    OddPdf("header-only.pdf", lambda: b"%PDF-1.7", fails("pdf_corrupt")),
    OddPdf("html.pdf", lambda: b"<!DOCTYPE html><html><body>Not found</body></html>", refused("HTML page")),
    OddPdf("png.pdf", _png, refused("PNG image")),
    OddPdf("zip.pdf", lambda: _zip("a.txt"), refused("ZIP archive")),
    OddPdf("docx.pdf", lambda: _zip("[Content_Types].xml", "word/document.xml"), refused("Office document")),
    OddPdf("plain-text.pdf", lambda: b"Dear all,\nplease find attached.\n" * 100, refused("plain text")),
    OddPdf("newlines.pdf", lambda: b"\n" * 5000, refused("whitespace only")),
    OddPdf("random-after-header.pdf", _random_after_header, fails("pdf_corrupt")),
    OddPdf("garbage-before-header.pdf", lambda: b"x" * 600 + b"\n" + _sound(), completes("sound file", pages=2)),
    OddPdf("header-beyond-window.pdf", lambda: b"x" * 2000 + b"\n" + _sound(), refused("header beyond 1 KiB")),
    OddPdf("zeros-at-the-end.pdf", lambda: _sound() + bytes(1_000_000), completes("sound file", pages=2)),
    OddPdf("xref-off-by-7.pdf", lambda: pdf_of("off by seven").render(offset_error=7), completes("off by seven")),
    OddPdf("no-startxref.pdf", lambda: pdf_of("no start").render(startxref=b""), completes("no start")),
    OddPdf("no-eof.pdf", lambda: pdf_of("no end").render(eof=b""), completes("no end")),
    OddPdf(
        "startxref-beyond-file.pdf",
        lambda: pdf_of("far away").render(startxref=b"startxref\n999999999\n"),
        completes("far away"),
    ),
    OddPdf("cut-in-header.pdf", lambda: b"%PDF-", fails("pdf_corrupt")),
    OddPdf("cut-in-stream.pdf", _cut_in_stream, fails("pdf_corrupt")),
    OddPdf("cut-in-xref.pdf", _cut_in_xref, fails("pdf_corrupt")),
    OddPdf("cut-in-trailer.pdf", _cut_in_trailer, completes("sound file", pages=2)),
    OddPdf("carriage-returns.pdf", lambda: _sound().replace(b"\n", b"\r"), completes("sound file", pages=2)),
    OddPdf("wrong-stream-length.pdf", _wrong_length, completes("Length is a lie", "far too big", pages=2)),
    OddPdf("junk-in-flate.pdf", _junk_in_flate, completes("Readable page", pages=2, pages_without_text=1)),
    OddPdf("crypt-filter.pdf", _crypt_filter, completes("behind a crypt filter")),
    OddPdf("no-catalog.pdf", _no_catalog, fails("pdf_corrupt")),
    OddPdf("header-version-missing.pdf", lambda: pdf_of("v").render(header=b"%PDF-\n"), completes("v")),
]
