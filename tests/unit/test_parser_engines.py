from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from cli.sample import write_sample
from services.parser.engines import ParserOptions, extract, plan, steps
from shared.errors import CorruptPdfError, EmptyPdfError, EncryptedPdfError, NotAPdfError, PdfLimitError
from tests.support.odd_pdfs.samples import SAMPLES
from tests.support.pdf_writer import Pdf, pdf_of, stream
from tests.support.pdfs import ODD_PDFS

_AUTO = ParserOptions()
_ENGINES: list[Literal["pdfium", "pypdf"]] = ["pdfium", "pypdf"]


def _odd(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(next(case.content() for case in ODD_PDFS if case.name == name))
    return path


@pytest.mark.parametrize("engine", _ENGINES)
def test_a_document_is_planned_and_its_pages_extracted(engine: Literal["pdfium", "pypdf"]) -> None:
    path, options = SAMPLES / "05-13-pages.pdf", ParserOptions(engine=engine)
    found = plan(path, options)
    assert (found.pages, found.engine) == (13, engine)
    assert found.metadata["Title"] == "Introduction to parallel GP programming"
    assert found.metadata["Author"] == "The PARI group"
    extraction = extract(path, 2, 4, engine, options)
    assert (extraction.pages, extraction.pages_without_text, extraction.engine) == (3, 0, engine)
    assert {page for chunk in extraction.chunks for page in (chunk.first_page, chunk.last_page)} == {2, 3, 4}
    assert max(len(chunk.text) for chunk in extraction.chunks) <= _AUTO.chunk_size


def test_both_engines_read_the_same_words() -> None:
    path = SAMPLES / "03-two-column.pdf"
    words = [
        {
            word
            for chunk in extract(path, 1, 3, engine, ParserOptions(engine=engine)).chunks
            for word in chunk.text.split()
        }
        for engine in _ENGINES
    ]
    assert len(words[0] & words[1]) / len(words[0]) > 0.8


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("11-encrypted-openpassword.pdf", EncryptedPdfError, "protected with a password"),
        ("encrypted-unknown-scheme.pdf", EncryptedPdfError, "not supported"),
        ("17-zero-pages.pdf", EmptyPdfError, "has no pages"),
        ("16-truncated.pdf", CorruptPdfError, "is damaged"),
        ("18-empty.pdf", NotAPdfError, "is empty"),
        ("html.pdf", NotAPdfError, "looks like an HTML or XML page"),
        ("docx.pdf", NotAPdfError, "looks like a ZIP archive or an Office document"),
        ("plain-text.pdf", NotAPdfError, "no %PDF- header"),
        ("pages-a-million.pdf", PdfLimitError, "100000"),
    ],
)
def test_a_refusal_says_what_is_wrong(name: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        plan(_odd(name, tmp_path), _AUTO)


def test_the_reason_does_not_depend_on_the_file_before_it() -> None:
    """pdfium keeps the last error of the process and does not reset it."""
    options = ParserOptions(engine="pdfium")
    with pytest.raises(EncryptedPdfError):
        plan(SAMPLES / "11-encrypted-openpassword.pdf", options)
    with pytest.raises(EmptyPdfError):
        plan(SAMPLES / "17-zero-pages.pdf", options)


def test_a_page_count_that_lies_is_found_out_by_the_second_engine(tmp_path: Path) -> None:
    path = _odd("count-a-million.pdf", tmp_path)
    found = plan(path, _AUTO)
    assert (found.pages, found.engine) == (2, "pypdf")
    with pytest.raises(PdfLimitError, match="1,000,000 pages"):
        plan(path, ParserOptions(engine="pdfium"))


def test_a_page_that_pdfium_cannot_read_is_read_by_pypdf(tmp_path: Path) -> None:
    path = _odd("crypt-filter.pdf", tmp_path)
    assert extract(path, 1, 1, "pdfium", ParserOptions(engine="pdfium")).pages_without_text == 1
    both = extract(path, 1, 1, "pdfium", _AUTO)
    assert [chunk.text for chunk in both.chunks] == ["behind a crypt filter"]
    assert both.pages_without_text == 0


def test_blank_pages_among_others_need_no_second_opinion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pdf = pdf_of("a page with text")
    pdf.page(stream(b""))
    path = tmp_path / "blank.pdf"
    path.write_bytes(pdf.render())
    asked: list[Any] = []
    monkeypatch.setattr(steps, "PypdfDocument", asked.append)
    assert extract(path, 1, 2, "pdfium", _AUTO).pages_without_text == 1
    assert asked == []


def test_a_second_opinion_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pdf = pdf_of("a page with text")
    pdf.page(stream(b"0 0 1 1 re f\n" * 300_000))
    path = tmp_path / "map.pdf"
    path.write_bytes(pdf.render())
    monkeypatch.setattr(steps, "SECOND_OPINION_BUDGET", timedelta(milliseconds=100))
    extraction = extract(path, 1, 2, "pdfium", _AUTO)
    assert [chunk.text for chunk in extraction.chunks] == ["a page with text"]
    assert extraction.pages_without_text == 1


def test_a_broken_page_does_not_cost_the_others(tmp_path: Path) -> None:
    pdf = pdf_of("page one", "page two", "page three")
    pdf.objects[pdf.kids[1]] = b"null"
    path = tmp_path / "hole.pdf"
    path.write_bytes(pdf.render())
    extraction = extract(path, 1, 3, "pdfium", _AUTO)
    assert (extraction.pages, extraction.pages_without_text) == (3, 1)
    assert [(c.text, c.first_page, c.last_page) for c in extraction.chunks] == [("page one\npage three", 1, 3)]


def test_a_range_of_which_no_page_can_be_read_fails(tmp_path: Path) -> None:
    path = tmp_path / "short.pdf"
    path.write_bytes(pdf_of("one").render())
    with pytest.raises(CorruptPdfError, match="damaged"):
        extract(path, 5, 6, "pdfium", _AUTO)


def test_metadata_is_cleaned_and_cut(tmp_path: Path) -> None:
    metadata = plan(_odd("metadata-odd.pdf", tmp_path), _AUTO).metadata
    assert metadata["Title"] == "A"
    assert len(metadata["Subject"]) == 1000
    assert "Creator" not in metadata


def test_a_page_of_ten_megabytes_is_read_whole(tmp_path: Path) -> None:
    line = "The quick brown fox jumps over the lazy dog near the river bank and rests."
    lines = b"".join(b"(%s) ' " % line.encode() for _ in range(10_000_000 // len(line)))
    pdf = Pdf()
    pdf.page(stream(b"BT /F1 1 Tf 1 TL 10 800 Td " + lines + b"ET"))
    path = tmp_path / "long.pdf"
    path.write_bytes(pdf.render())
    assert extract(path, 1, 1, "pdfium", _AUTO).characters > 9_900_000


def test_a_missing_file_is_not_taken_for_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        plan(tmp_path / "nowhere.pdf", _AUTO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be between 1 and"),
        ({"chunk_size": 50, "chunk_overlap": 50}, "less than chunk_size"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"timeout": timedelta(0)}, "timeout must be longer"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParserOptions(**options)


def test_unknown_engines_and_ranges_are_refused() -> None:
    path = SAMPLES / "01-one-page.pdf"
    with pytest.raises(ValueError, match="unknown PDF engine"):
        extract(path, 1, 1, "mupdf", _AUTO)
    with pytest.raises(ValueError, match="range of pages"):
        extract(path, 0, 1, "pdfium", _AUTO)


@pytest.mark.parametrize("engine", _ENGINES)
def test_the_sample_document_reads_well_in_both_engines(engine: Literal["pdfium", "pypdf"], tmp_path: Path) -> None:
    path, again = tmp_path / "sample.pdf", tmp_path / "again.pdf"
    write_sample(path, pages=30, seed=7)
    write_sample(again, pages=30, seed=7)
    assert path.read_bytes() == again.read_bytes()
    options = ParserOptions(engine=engine)
    assert plan(path, options).pages == 30
    extraction = extract(path, 1, 30, engine, options)
    assert extraction.pages_without_text == 0
    assert 1500 < extraction.characters / 30 < 2500
    words = {page: extract(path, page, page, engine, options).chunks[0].text.split(",")[0] for page in (1, 11, 21)}
    assert list(words.values()) == ["Beekeeping", "Sailing", "Astronomy"]


def test_a_sample_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 page"):
        write_sample(tmp_path / "none.pdf", pages=0)
