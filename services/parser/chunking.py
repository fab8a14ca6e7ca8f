"""From pages of text to chunks that can be embedded, and to parts that fit into an event."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from semantic_text_splitter import TextSplitter

MAX_PART_CHUNKS = 64
"""Most chunks of a part: one batch of an embedding provider."""

MAX_PART_BYTES = 504 * 1024
"""Most bytes of a part's chunks and vectors as JSON; the rest up to 512 KiB is for the event's other fields."""

_CHUNK_FIELDS = len('{"n":99,"text":,"first_page":1000000,"last_page":1000000},')
_BLOCK = 50_000
"""Characters handed to the splitter at once. Its time grows with the square of the text: a page of 10 MB would take
20 s, in blocks of this size it takes 0.1 s."""

_PAGE_BREAK = "\n"


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of text and the pages it stands on, numbered from 1, both included."""

    text: str
    first_page: int
    last_page: int


def chunks_of(pages: Iterable[tuple[int, str]], size: int, overlap: int) -> list[TextChunk]:
    """Cut pages into chunks at the best boundaries: paragraphs, then sentences, then words.

    Neighbouring chunks of different pages are merged while they fit, so that slides with a line each do not become
    a chunk each.

    Parameters
    ----------
    pages
        Page numbers, ascending, with their normalised text.
    size
        Most characters of a chunk.
    overlap
        Most characters that a chunk repeats from the one before it on the same page; less than `size`.
    """
    merged: list[TextChunk] = []
    for chunk in _page_chunks(pages, size, overlap):
        last = merged[-1] if merged else None
        if last and last.last_page < chunk.first_page and len(last.text) + len(chunk.text) < size:
            merged[-1] = TextChunk(last.text + _PAGE_BREAK + chunk.text, last.first_page, chunk.last_page)
        else:
            merged.append(chunk)
    return merged


def parts_of(
    chunks: Sequence[TextChunk],
    dimension: int,
    max_chunks: int = MAX_PART_CHUNKS,
    max_bytes: int = MAX_PART_BYTES,
) -> list[tuple[TextChunk, ...]]:
    """Cut the chunks of a shard into parts, each small enough for one event with its vectors.

    Parameters
    ----------
    dimension
        Of the vectors, which are float32 in base64.
    max_chunks
        Most chunks of a part.
    max_bytes
        Most bytes of a part's chunks and vectors in JSON. A single chunk that is larger makes a part of its own.
    """
    if max_chunks < 1:
        raise ValueError(f"a part holds at least 1 chunk, not {max_chunks}")
    parts: list[tuple[TextChunk, ...]] = []
    part: list[TextChunk] = []
    used = 0
    for chunk in chunks:
        cost = _json_bytes(chunk, dimension)
        if part and (len(part) == max_chunks or used + cost > max_bytes):
            parts.append(tuple(part))
            part, used = [], 0
        part.append(chunk)
        used += cost
    return [*parts, tuple(part)] if part else parts


def _page_chunks(pages: Iterable[tuple[int, str]], size: int, overlap: int) -> Iterator[TextChunk]:
    splitter = _splitter(size, overlap)
    for number, text in pages:
        for block in _blocks(text):
            for piece in splitter.chunks(block):
                if stripped := piece.strip():
                    yield TextChunk(stripped, number, number)


@lru_cache(maxsize=4)
def _splitter(size: int, overlap: int) -> TextSplitter:
    return TextSplitter(size, overlap=overlap)


def _blocks(text: str) -> Iterator[str]:
    """Cut long text at the last line end before the limit, else at the last space, else at the limit."""
    start = 0
    while len(text) - start > _BLOCK:
        end = _last_break(text, start, start + _BLOCK)
        yield text[start:end]
        start = end
    yield text[start:]


def _last_break(text: str, start: int, limit: int) -> int:
    for separator in ("\n", " "):
        found = text.rfind(separator, start + 1, limit)
        if found >= 0:
            return found
    return limit


def _json_bytes(chunk: TextChunk, dimension: int) -> int:
    text = len(json.dumps(chunk.text, ensure_ascii=False).encode())
    vector = 4 * -(-4 * dimension // 3)
    return _CHUNK_FIELDS + text + vector
