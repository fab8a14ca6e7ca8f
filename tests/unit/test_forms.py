from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.forms import MAX_FILENAME, FormFile, clean_filename
from services.gateway.problems import FileMissingError, MalformedUploadError
from tests.support.forms import BOUNDARY, CONTENT_TYPE, END, arriving, file_part, part

# Holds what a careless parser would take for a boundary or a line end.
TRICKY = b"%PDF-1.7\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n--\r\r\n\n--" + BOUNDARY.encode() + b"x\r\n-"


async def read(pieces: Iterable[bytes], content_type: str | None = CONTENT_TYPE) -> tuple[str, bytes]:
    """Return the name and the content of the file of a form."""
    form = FormFile(content_type, arriving(pieces))
    name = await form.filename()
    return name, b"".join([piece async for piece in form.content()])


async def name_of(disposition: bytes) -> str:
    name, content = await read([part(b"%PDF-", disposition) + END])
    assert content == b"%PDF-"
    return name


BODIES = {
    "the file alone": file_part(TRICKY) + END,
    "fields before and after": part(b"v", b'name="a"') + file_part(TRICKY) + part(b"", b'name="b"') + END,
    "no line end at the end": (file_part(TRICKY) + END).removesuffix(b"\r\n"),
    "blank lines in front": b"\r\n\r\n" + file_part(TRICKY) + END,
    "junk after the end": file_part(TRICKY) + END + b"\r\njunk --" + BOUNDARY.encode() + b"\r\n",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_cut_anywhere_gives_the_same_file(body: bytes) -> None:
    for cut in range(len(body) + 1):
        assert await read([body[:cut], body[cut:]]) == ("x.pdf", TRICKY)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_body_that_comes_byte_by_byte_gives_the_same_file(body: bytes) -> None:
    assert await read([body[at : at + 1] for at in range(len(body))]) == ("x.pdf", TRICKY)


@given(st.data(), st.binary(max_size=200), st.sampled_from([b"", TRICKY]))
async def test_any_content_cut_anyhow_gives_the_same_file(data: st.DataObject, noise: bytes, tail: bytes) -> None:
    content = noise + tail
    body = part(b"1", b'name="n"') + file_part(content) + END
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert await read(pieces) == ("x.pdf", content)


async def test_an_empty_file_is_a_file() -> None:
    assert await read([file_part(b"") + END]) == ("x.pdf", b"")


async def test_the_file_is_handed_on_as_it_arrives() -> None:
    asked: list[int] = []
    head, tail = file_part(b"first").removesuffix(b"\r\n"), b"second\r\n" + END

    def one_by_one() -> Iterable[bytes]:
        for number, piece in enumerate([head, tail]):
            asked.append(number)
            yield piece

    content = FormFile(CONTENT_TYPE, arriving(one_by_one())).content()
    assert await anext(content) == b"first"
    assert asked == [0]


async def test_of_two_files_the_first_is_taken() -> None:
    assert await read([file_part(b"one", b"1.pdf") + file_part(b"two", b"2.pdf") + END]) == ("1.pdf", b"one")


async def test_a_file_in_another_field_is_read_past() -> None:
    other = part(b"other", b'name="attachment"; filename="o.pdf"')
    assert await read([other + file_part(b"mine") + other + END]) == ("x.pdf", b"mine")


async def test_a_field_named_file_that_is_no_file_is_read_past() -> None:
    assert await read([part(b"text", b'name="file"') + file_part(b"mine") + END]) == ("x.pdf", b"mine")


@pytest.mark.parametrize(
    "body",
    [
        END,
        part(b"v", b'name="other"') + END,
        part(b"v", b'name="file"') + END,
        part(b"v", b'filename="x.pdf"') + END,
        b"",
    ],
    ids=["no part", "other field", "no filename", "no name", "no body"],
)
async def test_a_form_without_the_file_is_refused_by_the_name_of_the_field(body: bytes) -> None:
    with pytest.raises(FileMissingError, match="no file in its field 'file'"):
        await read([body])


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'name="file"; filename="x.pdf"', "x.pdf"),
        (b"name=file; filename=x.pdf", "x.pdf"),
        (b'filename="x.pdf"; name="file"', "x.pdf"),
        (b'name="file"; filename="a;b=c.pdf"', "a;b=c.pdf"),
        (rb'name="file"; filename="say \"hi\".pdf"', 'say "hi".pdf'),
        ('name="file"; filename="Übersicht 値😀.pdf"'.encode(), "Übersicht 値😀.pdf"),
        ('name="file"; filename="é.pdf"'.encode("latin-1"), "\N{REPLACEMENT CHARACTER}.pdf"),
        (b"name=\"file\"; filename*=UTF-8''%C3%9Cbersicht%20%E5%80%A4.pdf", "Übersicht 値.pdf"),
        (b"name=\"file\"; filename*=utf-8'de'%C3%9C.pdf; size=3", "Ü.pdf"),
        (b'name="file"; filename="plain.pdf"; filename*=UTF-8\'\'extended.pdf', "plain.pdf"),
        (b'name="file"; filename="50%25.pdf"', "50%25.pdf"),
        (b'name="file"; filename=""', "unnamed.pdf"),
        (b'name="file"; filename="../../etc/passwd"', "../../etc/passwd"),
        (b'name="file"; filename="/etc/passwd"', "/etc/passwd"),
        (rb'name="file"; filename="C:\\secret\\x.pdf"', "x.pdf"),
        (b'name="file"; filename="a\x00b\x1b[31m\x7f.pdf"', "ab[31m.pdf"),
    ],
)
async def test_the_filename_is_what_the_client_calls_it(disposition: bytes, name: str) -> None:
    assert await name_of(disposition) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\u202egnp.pdf", "agnp.pdf"),
        ("a\r\nX-Header: 1", "aX-Header: 1"),
        ("  x.pdf\t", "x.pdf"),
        ("\0\n", "unnamed.pdf"),
        ("", "unnamed.pdf"),
        ("x" * 1000, "x" * MAX_FILENAME),
    ],
)
def test_a_filename_is_fit_to_be_shown(name: str, shown: str) -> None:
    assert clean_filename(name) == shown


@given(st.text())
def test_any_filename_becomes_short_and_printable(name: str) -> None:
    shown = clean_filename(name)
    assert 0 < len(shown) <= MAX_FILENAME
    assert shown.isprintable()
    shown.encode()  # PostgreSQL and JSON take it


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/pdf",
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=b",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ],
)
def test_a_body_that_is_no_form_is_refused_with_how_to_do_it(content_type: str | None) -> None:
    with pytest.raises(MalformedUploadError, match=r"multipart/form-data in the field 'file', such as: curl -F file=@"):
        FormFile(content_type, arriving([]))


def test_a_boundary_beyond_its_limit_is_refused() -> None:
    with pytest.raises(MalformedUploadError, match="boundary"):
        FormFile(f"multipart/form-data; boundary={'b' * 300}", arriving([]))


async def test_a_quoted_boundary_and_any_case_of_the_type_are_fine() -> None:
    content_type = f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"'
    assert await read([file_part(b"x") + END], content_type) == ("x.pdf", b"x")


async def test_a_file_that_breaks_off_anywhere_is_refused() -> None:
    body = file_part(TRICKY) + END
    start, end = body.index(b"%PDF"), body.index(b"\r\n--" + BOUNDARY.encode() + b"--")
    for cut in range(start, end + len(BOUNDARY) + 6):
        with pytest.raises(MalformedUploadError, match="broke off before the end of the file"):
            await read([body[:cut]])


async def test_a_form_that_breaks_off_before_the_file_has_no_file() -> None:
    body = part(b"v", b'name="a"') + file_part(b"x")
    for cut in range(body.index(b"application/pdf")):
        with pytest.raises(FileMissingError):
            await read([body[:cut]])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"%PDF-1.7 raw", "boundary"),
        (b"--other\r\n", "boundary"),
        (part(b"", b'name="a"', b"X: " + b"y" * 100_000), "header"),
        (part(b"", b'name="a"', *(b"X%d: y" % n for n in range(1000))), "header"),
        (part(b"", b'name="a"', b"X y: z"), "header"),
    ],
    ids=["a raw PDF", "another boundary", "a huge header", "very many headers", "a bad header"],
)
async def test_a_body_that_is_not_what_its_type_says_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(MalformedUploadError, match=f"no valid multipart form: .*{why}"):
        await read(_pieces(body, 1000))


async def test_an_error_of_the_connection_passes_through() -> None:
    def breaking() -> Iterable[bytes]:
        yield file_part(b"x" * 100)[:-50]
        raise ConnectionResetError("the client is gone")

    with pytest.raises(ConnectionResetError):
        await read(breaking())


def _pieces(body: bytes, size: int) -> Sequence[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]
