"""Documents whose parts hang together in odd ways, and rarer features of the format."""

import io
from collections.abc import Callable

from pypdf import PdfReader, PdfWriter

from tests.support.odd_pdfs.case import OddPdf, completes, fails
from tests.support.pdf_writer import A4, Pdf, flate, pdf_of, refs, stream, text, with_xref_stream

_FONT = b"/Resources << /Font << /F1 3 0 R >> >>"
_IMAGE = b"/Type /XObject /Subtype /Image /Width 64 /Height 64 /ColorSpace /DeviceGray /BitsPerComponent %d /Filter /%s"


def _tree(root: bytes, *lines: str) -> bytes:
    """Render pages under a root node written by hand, in which %s stands for their references."""
    pdf = pdf_of(*lines)
    pdf.objects[2] = root % refs(pdf.kids) if b"%s" in root else root
    return pdf.render()


def _claims(count: bytes) -> Callable[[], bytes]:
    return lambda: _tree(b"<< /Type /Pages /Count " + count + b" /Kids [%s] >>", "one of two", "two of two")


def _self_reference() -> bytes:
    return _tree(b"<< /Type /Pages /Count 2 /Kids [%s 2 0 R] >>", "page beside a loop")


def _parent_loop() -> bytes:
    pdf = pdf_of("page above a loop")
    node = pdf.add(b"")
    pdf.objects[node] = b"<< /Type /Pages /Parent %d 0 R /Count 1 /Kids [2 0 R] >>" % node
    pdf.objects[2] = b"<< /Type /Pages /Parent %d 0 R /Count 2 /Kids [%s %d 0 R] >>" % (node, refs(pdf.kids), node)
    return pdf.render()


def _deep_tree(levels: int) -> bytes:
    pdf = pdf_of("at the bottom of the tree")
    below = pdf.kids[0]
    for _ in range(levels):
        below = pdf.add(b"<< /Type /Pages /Count 1 /Kids [%d 0 R] >>" % below)
    pdf.objects[2] = b"<< /Type /Pages /Count 1 /Kids [%d 0 R] >>" % below
    return pdf.render()


def _inherited() -> bytes:
    """Three levels of nodes; fonts and boxes stand in the upper ones alone."""
    pdf = Pdf()
    leaves = []
    for line in ("inherits from its parent", "inherits from the root"):
        shown = pdf.add(stream(text(line)))
        leaves.append(pdf.add(b"<< /Type /Page /Parent 2 0 R /Contents %d 0 R >>" % shown))
    middle = pdf.add(b"<< /Type /Pages /Parent 2 0 R /Count 2 /Kids [%s] %s >>" % (refs(leaves), _FONT))
    upper = pdf.add(b"<< /Type /Pages /Parent 2 0 R /Count 2 /Kids [%d 0 R] >>" % middle)
    pdf.objects[2] = b"<< /Type /Pages /Count 2 /MediaBox %s /Kids [%d 0 R] %s >>" % (A4, upper, _FONT)
    for leaf in leaves:
        pdf.objects[leaf] = pdf.objects[leaf].replace(b"/Parent 2 0", b"/Parent %d 0" % middle)
    pdf.objects[middle] = pdf.objects[middle].replace(b"/Parent 2 0", b"/Parent %d 0" % upper)
    return pdf.render()


def _null_kid() -> bytes:
    return _tree(b"<< /Type /Pages /Count 3 /Kids [%s 99 0 R] >>", "a real page", "another one")


def _missing_contents() -> bytes:
    pdf = pdf_of("only this page has content")
    pdf.page(None)
    return pdf.render()


def _contents_array() -> bytes:
    pdf = Pdf()
    one, two = pdf.add(stream(b"BT /F1 12 Tf 50 700 Td")), pdf.add(stream(b"(in two streams) Tj ET"))
    pdf.page(None, b"/Contents [null %d 0 R null 999 0 R %d 0 R]" % (one, two))
    return pdf.render()


def _recursive_form() -> bytes:
    pdf = pdf_of()
    form = pdf.add(b"")
    body = text("from a form that draws itself") + b" /X Do"
    entries = b"/Type /XObject /Subtype /Form /BBox %s " % A4
    own = b"/Resources << /Font << /F1 3 0 R >> /XObject << /X %d 0 R >> >>" % form
    pdf.objects[form] = stream(body, entries + own)
    pdf.page(stream(b"/X Do"), resources=b"/XObject << /X %d 0 R >>" % form)
    return pdf.render()


def _image(contents: bytes, name: bytes, bits: int) -> bytes:
    pdf = pdf_of("before the junk image")
    image = pdf.add(stream(contents, _IMAGE % (bits, name)))
    pdf.page(stream(b"q 500 0 0 500 0 0 cm /I Do Q"), resources=b"/XObject << /I %d 0 R >>" % image)
    return pdf.render()


def _scan(*, with_text: bool) -> bytes:
    pdf = pdf_of("A cover page with text") if with_text else Pdf()
    pixels = bytes((x * y) % 251 for x in range(64) for y in range(64))
    image = pdf.add(flate(pixels, _IMAGE.replace(b"/Filter /%s", b"") % 8))
    for _ in range(3):
        pdf.page(stream(b"q 500 0 0 700 0 0 cm /I Do Q"), resources=b"/XObject << /I %d 0 R >>" % image)
    return pdf.render()


def _rotated() -> bytes:
    pdf = Pdf()
    for degrees in (90, 180, 270, 45, -90):
        pdf.page(stream(text(f"rotated by {degrees}")), b"/Rotate %d" % degrees)
    return pdf.render()


def _box(mediabox: bytes, line: str) -> bytes:
    pdf = Pdf()
    pdf.page(stream(text(line)), mediabox=mediabox)
    return pdf.render()


def _incremental() -> bytes:
    """A second version of the page's content is appended, as editors do."""
    old = pdf_of("the old version").render()
    previous = old.rindex(b"xref\n0 ")
    at = len(old)
    update = b"4 0 obj\n%s\nendobj\n" % stream(text("the new version"))
    xref = b"xref\n4 1\n%010d 00000 n \ntrailer\n<< /Size 6 /Root 1 0 R /Prev %d >>\n" % (at, previous)
    return old + update + xref + b"startxref\n%d\n%%%%EOF\n" % (at + len(update))


def _prev_loop() -> bytes:
    """The cross-reference table names itself as the one before it."""
    plain = pdf_of("a table that loops").render()
    return pdf_of("a table that loops").render(trailer=b"/Prev %d" % plain.rindex(b"xref\n0 "))


def _xref_stream_loop() -> bytes:
    return with_xref_stream(pdf_of("a stream that loops"), b"/Prev %d")


def _object_stream(*, extends_itself: bool) -> bytes:
    pdf = pdf_of("catalog in an object stream")
    body = pdf.objects.pop(1)
    number = max(pdf.objects) + 1
    loop = b"/Extends %d 0 R" % number if extends_itself else b""
    pdf.add(stream(b"1 0 " + body, b"/Type /ObjStm /N 1 /First 4 " + loop))
    return with_xref_stream(pdf, in_streams={1: (number, 0)})


def _object_stream_in_itself() -> bytes:
    """The cross-reference says that the object stream lies within itself."""
    pdf = pdf_of("found in spite of it")
    body = pdf.objects.pop(1)
    holder = pdf.add(stream(b"1 0 " + body, b"/Type /ObjStm /N 1 /First 4"))
    return with_xref_stream(pdf, in_streams={1: (holder, 0), holder: (holder, 0)})


def _length_loop() -> bytes:
    pdf = pdf_of()
    contents = pdf.add(b"")
    pdf.objects[contents] = b"<< /Length %d 0 R >>\nstream\n%s\nendstream" % (contents, text("length is itself"))
    pdf.page(None, b"/Contents %d 0 R" % contents)
    return pdf.render()


def _linearised() -> bytes:
    pdf = pdf_of("a linearised page", "its second page")
    pdf.objects[0] = b""
    del pdf.objects[0]
    pdf.add(b"<< /Linearized 1 /L 1000 /H [500 40] /O 5 /E 700 /N 2 /T 900 >>")
    return pdf.render()


def _xfa() -> bytes:
    pdf = pdf_of("Please wait... If this message is not replaced, your viewer cannot display the form.")
    packet = pdf.add(stream(b'<xdp:xdp xmlns:xdp="http://ns.adobe.com/xdp/"><template/></xdp:xdp>'))
    pdf.objects[1] = b"<< /Type /Catalog /Pages 2 0 R /NeedsRendering true /AcroForm << /XFA %d 0 R >> >>" % packet
    return pdf.render()


def _page_labels() -> bytes:
    pdf = pdf_of("front matter", "main matter")
    labels = b"/PageLabels << /Nums [0 << /S /r >> 1 << /S /D /St -5 >> null null] >>"
    pdf.objects[1] = b"<< /Type /Catalog /Pages 2 0 R %s >>" % labels
    return pdf.render()


def _attachment() -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf_of("with an attachment").render())))
    writer.add_attachment("program.exe", b"MZ" + bytes(1000))
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def _action(action: bytes) -> bytes:
    pdf = pdf_of("with an action")
    pdf.objects[1] = b"<< /Type /Catalog /Pages 2 0 R /OpenAction << %s >> >>" % action
    return pdf.render()


def _outline_loop() -> bytes:
    pdf = pdf_of("with an outline that loops")
    item = pdf.add(b"")
    pdf.objects[item] = b"<< /Title (again) /Parent %d 0 R /Next %d 0 R /First %d 0 R >>" % (item, item, item)
    pdf.objects[1] = b"<< /Type /Catalog /Pages 2 0 R /Outlines << /First %d 0 R /Last %d 0 R >> >>" % (item, item)
    return pdf.render()


def _odd_metadata() -> bytes:
    pdf = pdf_of("with odd metadata")
    info = pdf.add(b"<< /Title <FEFFD8000041> /Author [1 2 3] /Subject (%s) /Creator 12 0 R >>" % (b"s" * 100_000))
    return pdf.render(trailer=b"/Info %d 0 R" % info)


CASES = [
    OddPdf("tree-self-reference.pdf", _self_reference, fails("pdf_corrupt")),
    OddPdf("tree-parent-loop.pdf", _parent_loop, completes("page above a loop", pages=2)),
    OddPdf("tree-5000-levels.pdf", lambda: _deep_tree(5000), fails("pdf_limit_exceeded")),
    OddPdf("tree-50-levels.pdf", lambda: _deep_tree(50), completes("at the bottom of the tree")),
    OddPdf("tree-inherited-3-levels.pdf", _inherited, completes("from its parent", "from the root", pages=2)),
    OddPdf("tree-null-kid.pdf", _null_kid, completes("a real page", "another one", pages=2)),
    OddPdf("count-a-million.pdf", _claims(b"1000000"), completes("one of two", "two of two", pages=2)),
    OddPdf("count-two-billion.pdf", _claims(b"2147483647"), completes("one of two", "two of two", pages=2)),
    OddPdf("count-overflow.pdf", _claims(b"99999999999999"), completes("one of two", "two of two", pages=2)),
    OddPdf("count-negative.pdf", _claims(b"-2"), completes("one of two", "two of two", pages=2)),
    OddPdf("count-3-of-2.pdf", _claims(b"3"), completes("one of two", "two of two", pages=2)),
    OddPdf("count-1-of-2.pdf", _claims(b"1"), completes("one of two", pages=1)),
    OddPdf("count-missing.pdf", lambda: _tree(b"<< /Type /Pages /Kids [%s] >>", "one", "two"), completes(pages=2)),
    OddPdf("count-zero-of-2.pdf", _claims(b"0"), completes("one of two", "two of two", pages=2)),
    OddPdf("kids-missing.pdf", lambda: _tree(b"<< /Type /Pages /Count 5 >>", "lost"), fails("pdf_corrupt")),
    OddPdf("contents-missing.pdf", _missing_contents, completes("only this page", pages=2, pages_without_text=1)),
    OddPdf("contents-array-with-null.pdf", _contents_array, completes("in two streams")),
    OddPdf("form-recursion.pdf", _recursive_form, completes("from a form that draws itself")),
    OddPdf(
        "image-jbig2-junk.pdf",
        lambda: _image(b"\xff" * 999, b"JBIG2Decode", 1),
        completes(pages=2, pages_without_text=1),
    ),
    OddPdf(
        "image-jpx-junk.pdf", lambda: _image(b"\xff" * 999, b"JPXDecode", 8), completes(pages=2, pages_without_text=1)
    ),
    OddPdf("scan.pdf", lambda: _scan(with_text=False), completes(pages=3, pages_without_text=3)),
    OddPdf(
        "scan-with-cover.pdf", lambda: _scan(with_text=True), completes("A cover page", pages=4, pages_without_text=3)
    ),
    OddPdf("rotated.pdf", _rotated, completes("rotated by 90", "rotated by -90", pages=5)),
    OddPdf("mediabox-huge.pdf", lambda: _box(b"[0 0 1e12 1e12]", "a huge page"), completes("a huge page")),
    OddPdf("mediabox-empty.pdf", lambda: _box(b"[0 0 0 0]", "no room"), completes("no room")),
    OddPdf("mediabox-junk.pdf", lambda: _box(b"[/a (b) null]", "junk box"), completes("junk box")),
    OddPdf("incremental-update.pdf", _incremental, completes("the new version")),
    OddPdf("xref-prev-loop.pdf", _prev_loop, completes("a table that loops")),
    OddPdf("xref-stream.pdf", lambda: with_xref_stream(pdf_of("by stream")), completes("by stream")),
    OddPdf("xref-stream-loop.pdf", _xref_stream_loop, completes("a stream that loops")),
    OddPdf("object-stream.pdf", lambda: _object_stream(extends_itself=False), completes("catalog in an object stream")),
    OddPdf("object-stream-extends-itself.pdf", lambda: _object_stream(extends_itself=True), completes("catalog in an")),
    OddPdf("object-stream-in-itself.pdf", _object_stream_in_itself, completes("found in spite of it")),
    OddPdf("length-loop.pdf", _length_loop, completes("length is itself")),
    OddPdf("linearised.pdf", _linearised, completes("a linearised page", pages=2)),
    OddPdf("pdf-2.0.pdf", lambda: pdf_of("version two").render(header=b"%PDF-2.0\n"), completes("version two")),
    OddPdf("xfa-form.pdf", _xfa, completes("Please wait")),
    OddPdf("page-labels.pdf", _page_labels, completes("front matter", "main matter", pages=2)),
    OddPdf("attachment.pdf", _attachment, completes("with an attachment")),
    OddPdf("javascript.pdf", lambda: _action(b"/S /JavaScript /JS (while(1);)"), completes("with an action")),
    OddPdf("launch.pdf", lambda: _action(b"/S /Launch /F (calc.exe)"), completes("with an action")),
    OddPdf("outline-loop.pdf", _outline_loop, completes("with an outline that loops")),
    OddPdf("metadata-odd.pdf", _odd_metadata, completes("with odd metadata")),
]
