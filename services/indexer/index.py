"""Puts embedded parts into the vector store, and takes out what was replaced or canceled."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from shared.batching import MicroBatcher
from shared.clock import now
from shared.errors import EmbeddingMismatchError
from shared.events import ChunksEmbedded, DocumentCompleted, PartIndexed, TaskCanceled, chunk_id
from shared.kafka import Outgoing
from shared.topics import TASK_EVENTS
from shared.vectors import StoredChunk, VectorStore

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PartIndexer:
    """Indexes parts.

    Parameters
    ----------
    model, dimension
        What the index is made for; a part of another model is refused rather than mixed in.
    batch
        Most chunks of one write; those of all parts in flight are gathered up to it.
    concurrency
        Most writes at the same time.
    """

    def __init__(self, store: VectorStore, model: str, dimension: int, *, batch: int, concurrency: int) -> None:
        self._store = store
        self._model = model
        self._dimension = dimension
        self._batcher = MicroBatcher(self._upsert, max_items=batch, max_concurrency=concurrency)

    async def index(self, event: ChunksEmbedded) -> list[Outgoing]:
        """Index one part; doing so twice leaves it there once.

        Raises
        ------
        EmbeddingMismatchError
            The part was embedded for another index.
        TransientError
            The vector store is away.
        """
        started = now()
        if (event.model, event.dimension) != (self._model, self._dimension):
            raise EmbeddingMismatchError(
                f"embedded by {event.model} with {event.dimension} dimensions, but the index is for {self._model}"
                f" with {self._dimension}: give embedder and indexer the same EMBEDDER, EMBEDDING_MODEL, EMBEDDING_DIM"
            )
        await self._batcher.submit(list(_stored(event)))
        report = PartIndexed(
            task_id=event.task_id,
            shard=event.shard,
            part=event.part,
            weight=event.weight,
            started_at=started,
            finished_at=now(),
        )
        return [Outgoing.of(TASK_EVENTS.name, str(event.task_id), report)]

    async def retire(self, event: DocumentCompleted) -> list[Outgoing]:
        """Remove the chunks of a document's versions that are older than the one now complete."""
        await self._store.retire(event.owner, event.document_id, version_of(event.submitted_at))
        return []

    async def discard(self, event: TaskCanceled | ChunksEmbedded) -> list[Outgoing]:
        """Remove what was indexed of a canceled task, told of by its cancellation or by a part of it that waits."""
        await self._store.discard(event.owner, event.task_id)
        return []

    async def aclose(self) -> None:
        """Let go of what waits."""
        await self._batcher.aclose()

    async def _upsert(self, chunks: Sequence[StoredChunk]) -> list[None]:
        await self._store.upsert(chunks)
        return [None] * len(chunks)


def version_of(submitted_at: datetime) -> int:
    """Return a document's version: the microsecond since the epoch in which its task was accepted."""
    return (submitted_at - EPOCH) // timedelta(microseconds=1)


def _stored(event: ChunksEmbedded) -> Iterator[StoredChunk]:
    version = version_of(event.submitted_at)
    for chunk, vector in zip(event.chunks, event.matrix(), strict=True):
        yield StoredChunk(
            chunk_id=chunk_id(event.task_id, event.model, event.shard, event.part, chunk.n),
            document_id=event.document_id,
            task_id=event.task_id,
            owner=event.owner,
            filename=event.filename,
            version=version,
            text=chunk.text,
            first_page=chunk.first_page,
            last_page=chunk.last_page,
            vector=vector,
        )
