"""Searches the index in plain words."""

from collections.abc import Iterable
from operator import attrgetter
from uuid import UUID

from pydantic import BaseModel, Field

from shared.embedding import Embedder
from shared.vectors import Hit, VectorStore


class FoundChunk(BaseModel):
    """A piece of a document."""

    score: float = Field(description="cosine similarity to the query: 1 is the same direction")
    text: str
    filename: str
    first_page: int
    last_page: int
    document_id: UUID


class Found(BaseModel):
    """What was found, best first."""

    hits: list[FoundChunk]


async def search(embedder: Embedder, vectors: VectorStore, owner: str, query: str, limit: int) -> Found:
    """Return the chunks of an owner whose meaning is nearest to the query's, each text once.

    While a document has more than one task, each has chunks of its own. One text more than wanted is looked for: only
    then have all doubles of the last one been seen, which are as near as it is.

    Raises
    ------
    TransientError
        The embedding provider or the vector store is away.
    """
    embeddings = await embedder.embed([query])
    wanted = limit + 1
    while True:
        hits = await vectors.search(owner, embeddings.vectors[0], wanted)
        distinct = without_doubles(hits)
        if len(distinct) > limit or len(hits) < wanted:
            return Found(hits=[_found(hit) for hit in distinct[:limit]])
        wanted *= 2


def without_doubles(hits: Iterable[Hit]) -> list[Hit]:
    """Return hits, the best first, without those that another one repeats from a newer version of its document."""
    newest: dict[tuple[UUID, int, int, str], Hit] = {}
    for hit in sorted(hits, key=attrgetter("version"), reverse=True):
        newest.setdefault((hit.document_id, hit.first_page, hit.last_page, hit.text), hit)
    return sorted(newest.values(), key=attrgetter("score"), reverse=True)


def _found(hit: Hit) -> FoundChunk:
    return FoundChunk(
        score=hit.score,
        text=hit.text,
        filename=hit.filename,
        first_page=hit.first_page,
        last_page=hit.last_page,
        document_id=hit.document_id,
    )
