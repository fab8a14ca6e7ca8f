from itertools import pairwise
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.parser.chunking import TextChunk, chunks_of, parts_of
from shared.clock import now
from shared.events import Chunk, ChunksEmbedded, ChunksExtracted

_RECORD_LIMIT = 512 * 1024  # bytes of an event
_WORDS = st.text(st.sampled_from("abc é漢😀.,!?-\n\t \u0301\u200d"), max_size=400)
_PAGES = st.lists(_WORDS, max_size=8).map(lambda texts: list(enumerate(texts, 3)))
_SIZES = st.integers(1, 120).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def _letters(text: str) -> str:
    return "".join(text.split())


@given(_PAGES, _SIZES)
def test_chunks_keep_to_their_size_and_name_their_pages(pages: list[tuple[int, str]], sizes: tuple[int, int]) -> None:
    chunks = chunks_of(pages, *sizes)
    texts = dict(pages)
    for chunk in chunks:
        assert 0 < len(chunk.text) <= sizes[0]
        assert chunk.text == chunk.text.strip()
        assert _letters(texts[chunk.first_page])
        assert _letters(texts[chunk.last_page])
        whole = "".join(texts[number] for number in range(chunk.first_page, chunk.last_page + 1))
        assert _letters(chunk.text) in _letters(whole)
    assert [c.first_page for c in chunks] == sorted(c.first_page for c in chunks)
    assert chunks == chunks_of(pages, *sizes)


@given(_PAGES, st.integers(1, 120))
def test_without_overlap_the_chunks_are_the_text(pages: list[tuple[int, str]], size: int) -> None:
    chunks = chunks_of(pages, size, 0)
    assert _letters("".join(chunk.text for chunk in chunks)) == _letters("".join(text for _, text in pages))


@given(_PAGES, _SIZES)
def test_with_overlap_no_text_is_lost(pages: list[tuple[int, str]], sizes: tuple[int, int]) -> None:
    """Each chunk goes on at the latest where the one before it ended, and the last one reaches the end."""
    whole, covered = _letters("".join(text for _, text in pages)), 0
    for chunk in chunks_of(pages, *sizes):
        letters = _letters(chunk.text)
        starts = [at for at in range(covered + 1) if whole.startswith(letters, at)]
        assert starts
        covered = max(covered, max(starts) + len(letters))
    assert covered == len(whole)


def test_slides_share_a_chunk_and_long_pages_do_not() -> None:
    slides = [(n, f"Slide {n}: one line") for n in range(1, 101)]
    merged = chunks_of(slides, 1000, 100)
    assert len(merged) == 2
    assert (merged[0].first_page, merged[-1].last_page) == (1, 100)
    long_pages = [(n, "A sentence of some length. " * 37) for n in (1, 2)]
    assert [(c.first_page, c.last_page) for c in chunks_of(long_pages, 1000, 100)] == [(1, 1), (2, 2)]


def test_chunks_end_at_sentences_and_overlap() -> None:
    page = " ".join(f"This is sentence number {n}." for n in range(100))
    chunks = chunks_of([(1, page)], 300, 60)
    assert all(chunk.text.endswith(".") for chunk in chunks)
    assert all(one.text.split(". ")[-1] in two.text for one, two in pairwise(chunks))


def test_a_page_of_ten_million_characters_takes_no_quadratic_time() -> None:
    page = "The quick brown fox jumps over the lazy dog.\n" * 220_000
    chunks = chunks_of([(1, page)], 1000, 100)
    assert len(chunks) > 9_000
    assert max(len(chunk.text) for chunk in chunks) <= 1000


def test_text_without_a_single_space_is_cut_as_well() -> None:
    chunks = chunks_of([(1, "漢" * 120_000)], 1000, 0)
    assert sum(len(chunk.text) for chunk in chunks) == 120_000


@pytest.mark.parametrize("dimension", [256, 1536, 4000])
@pytest.mark.parametrize("letter", ["a", '"', "\\", "\x01", "\n", "é", "漢", "😀"])
def test_a_part_with_its_vectors_fits_into_an_event(dimension: int, letter: str) -> None:
    chunks = [TextChunk(letter * 1000, 99_990 + n, 99_999) for n in range(300)]
    parts = parts_of(chunks, dimension)
    assert [chunk for part in parts for chunk in part] == chunks
    for part in parts:
        assert len(part) <= 64
        assert len(_event(part, dimension).model_dump_json().encode()) < _RECORD_LIMIT


def test_parts_are_filled_before_a_new_one_begins() -> None:
    chunks = [TextChunk("short", 1, 1)] * 130
    assert [len(part) for part in parts_of(chunks, 256)] == [64, 64, 2]
    assert parts_of([], 256) == []
    assert [len(part) for part in parts_of(chunks[:3], 256, max_bytes=1)] == [1, 1, 1]


def _event(part: tuple[TextChunk, ...], dimension: int) -> ChunksEmbedded:
    fields = tuple(
        Chunk(n=n, text=chunk.text, first_page=chunk.first_page, last_page=chunk.last_page)
        for n, chunk in enumerate(part)
    )
    source = ChunksExtracted(
        task_id=UUID(int=1), document_id=UUID(int=2), owner="o" * 200, filename="文" * 255, submitted_at=now(),
        shard=999, part=999, weight=64_000, chunks=fields,
    )  # fmt: skip
    return ChunksEmbedded.of(source, model="m" * 100, vectors=np.zeros((len(part), dimension), dtype=np.float32))
