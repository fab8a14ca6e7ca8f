"""Searches the index in plain words."""

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
    """Return the chunks of an owner whose meaning is nearest to the query's.

    Raises
    ------
    TransientError
        The embedding provider or the vector store is away.
    """
    embeddings = await embedder.embed([query])
    hits = await vectors.search(owner, embeddings.vectors[0], limit)
    return Found(hits=[_found(hit) for hit in hits])


def _found(hit: Hit) -> FoundChunk:
    return FoundChunk(
        score=hit.score,
        text=hit.text,
        filename=hit.filename,
        first_page=hit.first_page,
        last_page=hit.last_page,
        document_id=hit.document_id,
    )
