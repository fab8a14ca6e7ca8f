"""Small files that grow large, and other ways to make a reader work for ever."""

import zlib

from tests.support.odd_pdfs.case import OddPdf, completes, fails
from tests.support.pdf_writer import A4, Pdf, pdf_of, refs, stream, text, with_xref_stream

_MEBIBYTE = 1024 * 1024


def _deflated(unit: bytes, times: int) -> bytes:
    """Compress `unit * times` without ever holding it."""
    packer = zlib.compressobj(9)
    block = unit * 1024
    parts = [packer.compress(block) for _ in range(times // 1024)]
    return b"".join([*parts, packer.flush()])


def _one_page(contents: bytes) -> bytes:
    pdf = Pdf()
    pdf.page(contents)
    return pdf.render()


def _flate_bomb(mebibytes: int) -> bytes:
    return _one_page(stream(_deflated(b" " * 1024, mebibytes * 1024), b"/Filter /FlateDecode"))


def _bomb_beside_text() -> bytes:
    pdf = pdf_of("The page before", "The page after")
    pdf.page(stream(zlib.compress(_deflated(bytes(1024), 1536 * 1024)), b"/Filter [/FlateDecode /FlateDecode]"))
    return pdf.render()


def _object_stream_bomb() -> bytes:
    """The catalog lies in an object stream that starts with 1.5 GiB of spaces."""
    inner = b"4 0 1 1610612736 "
    data = zlib.compressobj(9)
    packed = [data.compress(inner)]
    block = b" " * _MEBIBYTE
    packed += [data.compress(block) for _ in range(1536)]
    packed += [data.compress(b"<< /Type /Catalog /Pages 2 0 R >>"), data.flush()]
    pdf = pdf_of("hidden")
    del pdf.objects[1]
    bomb = pdf.add(stream(b"".join(packed), b"/Type /ObjStm /N 2 /First %d /Filter /FlateDecode" % len(inner)))
    return with_xref_stream(pdf, in_streams={1: (bomb, 1)})


def _nested_filters(depth: int) -> bytes:
    data = text("under many filters")
    for _ in range(depth):
        data = zlib.compress(data)
    return _one_page(stream(data, b"/Filter [%s]" % (b"/FlateDecode " * depth)))


def _ascii_hex(mebibytes: int) -> bytes:
    return _one_page(stream(b"20" * (mebibytes * _MEBIBYTE // 2) + b">", b"/Filter /ASCIIHexDecode"))


def _lzw_bomb() -> bytes:
    """LZW of 440 MB of spaces: codes that each say one character more than the one before it, and a clear."""
    codes = range(258, 4094)
    widths = [9 if code < 511 else 10 if code < 1023 else 11 if code < 2047 else 12 for code in codes]
    growing = "".join(f"{code:0{width}b}" for code, width in zip(codes, widths, strict=True))
    bits = f"{256:09b}" + 60 * f"{32:09b}{growing}{256:012b}"
    bits += "0" * (-len(bits) % 8)
    return _one_page(stream(int(bits, 2).to_bytes(len(bits) // 8), b"/Filter /LZWDecode"))


def _run_length_bomb() -> bytes:
    return _one_page(stream(zlib.compress(b"\x81 " * (2 * _MEBIBYTE)), b"/Filter [/FlateDecode /RunLengthDecode]"))


def _predictor(columns: int) -> bytes:
    entries = b"/Filter /FlateDecode /DecodeParms << /Predictor 12 /Columns %d /Colors 32 /BitsPerComponent 32 >>"
    return _one_page(stream(zlib.compress(text("behind a wide predictor")), entries % columns))


def _four_megabytes_of_text() -> bytes:
    line = "The quick brown fox jumps over the lazy dog near the river bank and rests."
    lines = b"".join(b"(%s) ' " % line.encode() for _ in range(4 * 1000 * 1000 // len(line)))
    return _one_page(stream(zlib.compress(b"BT /F1 1 Tf 1 TL 10 800 Td " + lines + b"ET"), b"/Filter /FlateDecode"))


def _million_objects() -> bytes:
    pdf = pdf_of("among a million objects")
    first = max(pdf.objects) + 1
    pdf.objects.update(dict.fromkeys(range(first, first + 1_000_000), b"0"))
    return pdf.render()


def _million_pages() -> bytes:
    """A million times the same page, through two levels of the same nodes."""
    pdf = Pdf()
    page = pdf.add(b"<< /Type /Page /Parent 2 0 R /MediaBox %s >>" % A4)
    leaf = pdf.add(b"<< /Type /Pages /Parent 2 0 R /Count 1000 /Kids [%s] >>" % refs([page] * 1000))
    pdf.objects[2] = b"<< /Type /Pages /Count 1000000 /Kids [%s] >>" % refs([leaf] * 1000)
    return pdf.render()


def _deep(opening: bytes, closing: bytes, depth: int) -> bytes:
    return _one_page(stream(opening * depth + closing * depth + b"\n" + text("after the nesting")))


def _deep_object() -> bytes:
    pdf = pdf_of("beside a deep object")
    pdf.objects[1] = b"<< /Type /Catalog /Pages 2 0 R /Deep %s%s >>" % (b"[" * 50_000, b"]" * 50_000)
    return pdf.render()


def _forms_that_multiply() -> bytes:
    """Form XObjects that each draw the next one ten times: ten to the ninth."""
    pdf = Pdf()
    inner = pdf.add(
        stream(text("lol"), b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /Font << /F1 3 0 R >> >>")
    )
    for _ in range(9):
        entries = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X %d 0 R >> >>" % inner
        inner = pdf.add(stream(b"/X Do " * 10, entries))
    pdf.page(stream(b"/X Do"), resources=b"/XObject << /X %d 0 R >>" % inner)
    return pdf.render()


CASES = [
    OddPdf("bomb-flate-100-mib.pdf", lambda: _flate_bomb(100), completes(pages_without_text=1)),
    OddPdf("bomb-flate-2-gib.pdf", lambda: _flate_bomb(2048), fails("pdf_limit_exceeded")),
    OddPdf("bomb-beside-text.pdf", _bomb_beside_text, completes("before", "after", pages=3, pages_without_text=1)),
    OddPdf("bomb-object-stream.pdf", _object_stream_bomb, fails("pdf_limit_exceeded")),
    OddPdf("nested-filters-10.pdf", lambda: _nested_filters(10), completes("under many filters")),
    OddPdf("nested-filters-500.pdf", lambda: _nested_filters(500), completes("under many filters")),
    OddPdf("ascii-hex-40-mib.pdf", lambda: _ascii_hex(40), completes(pages_without_text=1)),
    OddPdf("bomb-lzw.pdf", _lzw_bomb, completes(pages_without_text=1)),
    OddPdf("bomb-run-length.pdf", _run_length_bomb, completes(pages_without_text=1)),
    OddPdf("predictor-wide.pdf", lambda: _predictor(2_000_000_000), completes(pages_without_text=1)),
    OddPdf("text-4-mb-on-a-page.pdf", _four_megabytes_of_text, completes("quick brown fox")),
    OddPdf("objects-a-million.pdf", _million_objects, completes("among a million objects")),
    OddPdf("pages-a-million.pdf", _million_pages, fails("pdf_limit_exceeded")),
    OddPdf("nested-arrays.pdf", lambda: _deep(b"[", b"]", 100_000), completes("after the nesting")),
    OddPdf("nested-dictionaries.pdf", lambda: _deep(b"<</A ", b">>", 50_000), completes("after the nesting")),
    OddPdf("nested-graphics-states.pdf", lambda: _deep(b"q ", b"Q ", 200_000), completes("after the nesting")),
    OddPdf("nested-object.pdf", _deep_object, completes("beside a deep object")),
    OddPdf("forms-that-multiply.pdf", _forms_that_multiply, completes()),
]
