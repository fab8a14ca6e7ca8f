"""Searching the real store while documents have more than one task."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID, uuid4

import numpy as np
import pytest

from services.gateway.search import search
from shared.database.pool import Pool
from shared.embedding import Embeddings
from shared.settings import VectorSettings
from shared.vectors import StoredChunk, VectorStore, create_vector_store

DOCUMENT = UUID(int=1)
OWNER = "owner"


class North:
    """An embedder for which every text points north."""

    model = "north"
    dimension = 2

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        return Embeddings(np.tile(towards(0), (len(texts), 1)), tokens=0)

    async def aclose(self) -> None:
        """Hold nothing."""


def towards(degrees: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    angle = np.radians(degrees)
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def chunk(text: str, degrees: float, *, version: int, page: int = 1, document_id: UUID = DOCUMENT) -> StoredChunk:
    """Return a chunk whose file is named by its version."""
    return StoredChunk(
        chunk_id=uuid4(),
        document_id=document_id,
        task_id=UUID(int=version),
        owner=OWNER,
        filename=f"{version}.pdf",
        version=version,
        text=text,
        first_page=page,
        last_page=page,
        vector=towards(degrees),
    )


@pytest.fixture
async def store(settings: VectorSettings, pool: Pool) -> AsyncIterator[VectorStore]:
    opened = await create_vector_store(settings, North.model, North.dimension)
    await opened.prepare()
    yield opened
    await opened.aclose()


async def found(store: VectorStore, limit: int) -> list[tuple[str, str]]:
    return [(hit.text, hit.filename) for hit in (await search(North(), store, OWNER, "anything", limit)).hits]


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 50])
async def test_a_document_with_several_tasks_shows_each_text_once_from_the_newest(
    store: VectorStore, limit: int
) -> None:
    await store.upsert([chunk(f"text {n}", 3 * n, version=version) for n in range(20) for version in range(1, 8)])
    assert await found(store, limit) == [(f"text {n}", "7.pdf") for n in range(min(limit, 20))]


async def test_what_only_an_older_task_has_is_found_beside_the_newer_ones(store: VectorStore) -> None:
    both = [chunk("in both", 1, version=version) for version in (1, 2)]
    await store.upsert([*both, chunk("not there yet", 2, version=1), chunk("new", 3, version=2)])
    assert await found(store, 10) == [("in both", "2.pdf"), ("not there yet", "1.pdf"), ("new", "2.pdf")]


async def test_vectors_that_differ_a_little_make_no_other_text(store: VectorStore) -> None:
    await store.upsert([chunk("a", 1, version=1), chunk("a", 1.001, version=2), chunk("b", 2, version=1)])
    assert await found(store, 1) == [("a", "2.pdf")]


async def test_the_same_text_elsewhere_is_no_double(store: VectorStore) -> None:
    elsewhere = [chunk("a", 2, version=1, page=2), chunk("a", 3, version=3, document_id=UUID(int=2))]
    await store.upsert([chunk("a", 1, version=2), *elsewhere])
    assert await found(store, 10) == [("a", "2.pdf"), ("a", "1.pdf"), ("a", "3.pdf")]
