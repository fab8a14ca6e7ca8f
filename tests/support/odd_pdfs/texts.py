"""Sound files whose text is what is odd."""

from tests.support.odd_pdfs.case import OddPdf, completes
from tests.support.pdf_writer import Pdf, cid_font, coded, stream, text


def _coded(mapping: dict[int, str], codes: list[int], raw: dict[int, bytes] | None = None) -> bytes:
    pdf = Pdf()
    font = cid_font(pdf, mapping, raw)
    pdf.page(stream(coded(codes)), resources=b"/Font << /F1 %d 0 R >>" % font)
    return pdf.render()


def _spelled(line: str) -> bytes:
    mapping = dict(enumerate(line, 1))
    return _coded(mapping, list(mapping))


def _no_tounicode() -> bytes:
    """Glyphs by number alone: nobody can tell their letters."""
    pdf = Pdf()
    font = cid_font(pdf, {})
    pdf.objects[font] = pdf.objects[font].split(b"/ToUnicode")[0] + b">>"
    pdf.page(stream(coded([1, 2, 3, 4])), resources=b"/Font << /F1 %d 0 R >>" % font)
    return pdf.render()


def _type3() -> bytes:
    pdf = Pdf()
    glyph = pdf.add(stream(b"600 0 0 0 500 700 d1 0 0 500 700 re f"))
    font = pdf.add(
        b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 600 700] /FontMatrix [0.001 0 0 0.001 0 0] /FirstChar 97 "
        b"/LastChar 98 /Widths [600 600] /CharProcs << /a %d 0 R /b %d 0 R >> /Resources << >> "
        b"/Encoding << /Type /Encoding /Differences [97 /a /b] >> >>" % (glyph, glyph)
    )
    pdf.page(stream(text("abba")), resources=b"/Font << /F1 %d 0 R >>" % font)
    return pdf.render()


def _missing_font() -> bytes:
    pdf = Pdf()
    pdf.page(stream(text("no such font", b"Nowhere")))
    return pdf.render()


def _invisible() -> bytes:
    """What a scanner with text recognition lays under the picture."""
    pdf = Pdf()
    pdf.page(stream(b"BT 3 Tr " + text("recognised by a scanner")[3:]))
    return pdf.render()


CASES = [
    OddPdf("text-chinese.pdf", lambda: _spelled("中文文档的第一页"), completes("中文文档")),
    OddPdf("text-hebrew.pdf", lambda: _spelled("שלום"[::-1]), completes("שלום")),
    OddPdf("text-beyond-bmp.pdf", lambda: _spelled("𠮷野家 😀"), completes("𠮷野家", "😀")),
    OddPdf("text-ligatures.pdf", lambda: _spelled("eﬃcient ﬁnding ﬂow"), completes("efficient", "finding", "flow")),
    OddPdf("text-no-tounicode.pdf", _no_tounicode, completes(pages_without_text=1)),
    OddPdf(
        "text-lone-surrogates.pdf",
        lambda: _coded({1: "a", 2: "b"}, [1, 3, 2, 4], {3: b"\xd8\x00", 4: b"\xdc\x00"}),
        completes("ab"),
    ),
    OddPdf("text-nul.pdf", lambda: _coded({1: "a", 2: "\0", 3: "b"}, [1, 2, 3]), completes("ab")),
    OddPdf("text-control-characters.pdf", lambda: _spelled("a\x01\x02\x1b\x7f\x9fb"), completes("a")),
    OddPdf("text-type3-font.pdf", _type3, completes("abba")),
    OddPdf("text-missing-font.pdf", _missing_font, completes("no such font")),
    OddPdf("text-invisible.pdf", _invisible, completes("recognised by a scanner")),
]
