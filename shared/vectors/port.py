"""What a vector store is: chunks of text, found by the likeness of their vectors, each owner's apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class StoredChunk:
    """A chunk to be stored.

    Attributes
    ----------
    version
        When its task was submitted, in microseconds since the epoch; of two tasks of a document the later is the newer.
    vector
        Shape (dimension,), float32, of length 1.
    """

    chunk_id: UUID
    document_id: UUID
    task_id: UUID
    owner: str
    filename: str
    version: int
    text: str
    first_page: int
    last_page: int
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes
    ----------
    score
        Cosine similarity to the query: 1 for the same direction, about 0 for what has nothing in common.
    version
        As in `StoredChunk`.
    """

    score: float
    text: str
    filename: str
    first_page: int
    last_page: int
    document_id: UUID
    chunk_id: UUID
    version: int


class VectorStore(Protocol):
    """Keeps the chunks of one embedding model. Safe to call from any number of tasks of one event loop at once.

    Every method but `ready` and `aclose` raises `DependencyUnavailableError` while the store's server is away,
    overloaded or not yet prepared.
    """

    async def prepare(self) -> None:
        """Make what the model's vectors need to be found fast; again is harmless. `paperlane migrate` calls it."""
        ...

    async def upsert(self, chunks: Sequence[StoredChunk]) -> None:
        """Store chunks, all of them or none; one that is there already takes its new content.

        Raises
        ------
        EmbeddingMismatchError
            A vector does not have the model's dimension.
        """
        ...

    async def retire(self, owner: str, document_id: UUID, before_version: int) -> int:
        """Remove a document's chunks that are older than a version, and return how many there were."""
        ...

    async def discard(self, owner: str, task_id: UUID) -> int:
        """Remove a task's chunks, and return how many there were."""
        ...

    async def search(self, owner: str, vector: NDArray[np.float32], limit: int) -> list[Hit]:
        """Return the owner's chunks that are most like a vector, shape (dimension,), the best first.

        There are `limit` of them, or all that the owner has; none for a vector of zeros. Every version counts by
        itself: while a document has two, the same text may be found twice.

        Raises
        ------
        EmbeddingMismatchError
            The vector does not have the model's dimension.
        """
        ...

    async def count(self, owner: str, document_id: UUID) -> int:
        """Return how many chunks of a document are stored, of any version."""
        ...

    async def ready(self) -> bool:
        """Tell whether the store can be used now."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
