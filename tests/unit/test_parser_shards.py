import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.parser.shards import shards_of


@given(st.integers(1, 20_000), st.sampled_from([("pdfium", 64), ("pypdf", 128)]))
def test_shards_cover_all_pages_once_in_even_pieces(pages: int, engine: tuple[str, int]) -> None:
    name, limit = engine
    shards = shards_of(pages, name)
    assert [page for first, last in shards for page in range(first, last + 1)] == list(range(1, pages + 1))
    lengths = [last - first + 1 for first, last in shards]
    assert max(lengths) <= limit
    assert max(lengths) - min(lengths) <= 1


def test_as_few_shards_as_possible() -> None:
    assert shards_of(64, "pdfium") == [(1, 64)]
    assert shards_of(65, "pdfium") == [(1, 32), (33, 65)]
    assert shards_of(128, "pypdf") == [(1, 128)]


def test_a_document_without_pages_has_no_shards() -> None:
    with pytest.raises(ValueError, match="at least 1 page"):
        shards_of(0, "pdfium")
