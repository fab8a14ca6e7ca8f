import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.shards import SHARD_PAGES, shards_of


@given(st.integers(1, 20_000))
def test_shards_cover_all_pages_once_in_even_pieces(pages: int) -> None:
    shards = shards_of(pages)
    assert [page for first, last in shards for page in range(first, last + 1)] == list(range(1, pages + 1))
    lengths = [last - first + 1 for first, last in shards]
    assert max(lengths) <= SHARD_PAGES
    assert max(lengths) - min(lengths) <= 1


def test_as_few_shards_as_possible() -> None:
    assert shards_of(64) == [(1, 64)]
    assert shards_of(65) == [(1, 32), (33, 65)]


def test_a_document_without_pages_has_no_shards() -> None:
    with pytest.raises(ValueError, match="at least 1 page"):
        shards_of(0)
