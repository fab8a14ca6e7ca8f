"""A writer of PDFs that are as wrong as a test wants them."""

import zlib
from collections.abc import Iterable

HEADER = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
HELVETICA = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
A4 = b"[0 0 595 842]"


def stream(data: bytes, entries: bytes = b"", length: int | None = None) -> bytes:
    """Return a stream object's body; `length` is what it claims, where that is not the truth."""
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(data) if length is None else length, data)


def flate(data: bytes, entries: bytes = b"") -> bytes:
    return stream(zlib.compress(data, 9), b"/Filter /FlateDecode " + entries)


def text(line: str, font: bytes = b"F1") -> bytes:
    """Return a content stream that shows a line of Latin-1 text."""
    shown = line.encode("latin-1").replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")
    return b"BT /%s 12 Tf 50 700 Td (%s) Tj ET" % (font, shown)


class Pdf:
    """Numbered objects; 1 is the catalog, 2 the root of the page tree, 3 Helvetica, to be replaced at will."""

    def __init__(self) -> None:
        self.objects: dict[int, bytes] = {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"",
            3: HELVETICA,
        }
        self.kids: list[int] = []

    def add(self, body: bytes) -> int:
        number = max(self.objects) + 1
        self.objects[number] = body
        return number

    def page(
        self,
        contents: bytes | None,
        entries: bytes = b"",
        resources: bytes = b"/Font << /F1 3 0 R >>",
        mediabox: bytes = A4,
    ) -> int:
        """Add a page that shows a content stream's body, given by `stream` or `flate`."""
        shown = b"/Contents %d 0 R" % self.add(contents) if contents is not None else b""
        number = self.add(
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Resources << %s >> %s %s >>"
            % (mediabox, resources, shown, entries)
        )
        self.kids.append(number)
        return number

    def render(
        self,
        trailer: bytes = b"",
        header: bytes = HEADER,
        offset_error: int = 0,
        startxref: bytes | None = None,
        eof: bytes = b"%%EOF\n",
    ) -> bytes:
        """Return the file."""
        if not self.objects[2]:
            self.objects[2] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(self.kids), refs(self.kids))
        body, offsets = bytearray(header), {}
        for number, content in sorted(self.objects.items()):
            offsets[number] = len(body)
            body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
        at, size = len(body), max(self.objects) + 1
        body += b"xref\n0 %d\n0000000000 65535 f \n" % size
        for number in range(1, size):
            used = number in offsets
            body += b"%010d %05d %s \n" % (
                offsets[number] + offset_error if used else 0,
                0 if used else 65535,
                b"n" if used else b"f",
            )
        body += b"trailer\n<< /Size %d /Root 1 0 R %s >>\n" % (size, trailer)
        return bytes(body) + (b"startxref\n%d\n" % at if startxref is None else startxref) + eof


def refs(numbers: Iterable[int]) -> bytes:
    return b" ".join(b"%d 0 R" % number for number in numbers)


def pdf_of(*lines: str) -> Pdf:
    """Return a sound PDF with a page for each line."""
    pdf = Pdf()
    for line in lines:
        pdf.page(stream(text(line)))
    return pdf


def with_xref_stream(pdf: Pdf, entries: bytes = b"", in_streams: dict[int, tuple[int, int]] | None = None) -> bytes:
    """Render with a cross-reference stream; `in_streams` gives the stream and index of objects that lie in one.

    In `entries`, %d stands for the position of the cross-reference stream itself.
    """
    whole = pdf.render()
    head = whole[: whole.rindex(b"xref\n0 ")]
    size = max([*pdf.objects, *(in_streams or {})]) + 2
    rows = bytearray(b"\0" * 7)
    for number in range(1, size - 1):
        if in_streams and number in in_streams:
            holder, index = in_streams[number]
            rows += b"\x02" + holder.to_bytes(4) + index.to_bytes(2)
        else:
            rows += b"\x01" + (head.find(b"\n%d 0 obj\n" % number) + 1).to_bytes(4) + b"\0\0"
    rows += b"\x01" + len(head).to_bytes(4) + b"\0\0"
    more = entries % len(head) if b"%d" in entries else entries
    table = stream(bytes(rows), b"/Type /XRef /Size %d /W [1 4 2] /Root 1 0 R %s" % (size, more))
    return head + b"%d 0 obj\n%s\nendobj\nstartxref\n%d\n%%%%EOF\n" % (size - 1, table, len(head))


def cid_font(pdf: Pdf, mapping: dict[int, str], raw: dict[int, bytes] | None = None) -> int:
    """Add a font of two-byte codes whose meaning is told by a ToUnicode map alone, and return its number.

    `raw` gives UTF-16BE bytes that no string can hold, such as half a surrogate pair.
    """
    values = {code: value.encode("utf-16-be") for code, value in mapping.items()} | (raw or {})
    lines = b"\n".join(b"<%04X> <%s>" % (code, value.hex().encode()) for code, value in values.items())
    cmap = pdf.add(
        stream(
            b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def\n"
            b"1 begincodespacerange <0000> <FFFF> endcodespacerange\n"
            b"%d beginbfchar\n%s\nendbfchar\nendcmap end end" % (len(values), lines)
        )
    )
    descriptor = pdf.add(
        b"<< /Type /FontDescriptor /FontName /Odd /Flags 4 /FontBBox [0 0 1000 1000] /ItalicAngle 0 "
        b"/Ascent 800 /Descent -200 /CapHeight 700 /StemV 80 >>"
    )
    descendant = pdf.add(
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Odd /CIDToGIDMap /Identity /DW 600 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /FontDescriptor %d 0 R >>"
        % descriptor
    )
    return pdf.add(
        b"<< /Type /Font /Subtype /Type0 /BaseFont /Odd /Encoding /Identity-H "
        b"/DescendantFonts [%d 0 R] /ToUnicode %d 0 R >>" % (descendant, cmap)
    )


def coded(codes: Iterable[int]) -> bytes:
    """Return a content stream that shows two-byte codes."""
    return b"BT /F1 12 Tf 50 700 Td <%s> Tj ET" % b"".join(b"%04X" % code for code in codes)
