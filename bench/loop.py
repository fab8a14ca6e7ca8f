"""The bare loop: the same work as the pipeline's, by the same code, in one process, one file after another.

Without HTTP, Kafka, child processes, progress and recovery, it is what the pipeline's throughput is held against.
Reads one JSON list of file names a line, and answers each with the number of pages in them.
"""

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from services.embedder.config import EmbedderSettings
from services.indexer.config import IndexerSettings
from services.indexer.index import version_of
from services.parser.chunking import TextChunk
from services.parser.config import ParserSettings
from services.parser.engines import ParserOptions, extract, plan
from shared.clock import now
from shared.embedding import Embedder, create_embedder
from shared.events import chunk_id, document_id
from shared.vectors import StoredChunk, VectorStore, create_vector_store

OWNER = "local"

T = TypeVar("T")


@dataclass(frozen=True)
class Loop:
    """The three steps, with the pipeline's own options and batch sizes."""

    options: ParserOptions
    embedder: Embedder
    store: VectorStore
    embedding_batch: int
    index_batch: int

    @classmethod
    async def open(cls) -> Self:
        """Load the model, and open the vector store, both as the environment says."""
        parser, embedding, indexing = ParserSettings(), EmbedderSettings(), IndexerSettings()
        embedder = create_embedder(embedding)
        store = await create_vector_store(indexing, embedder.model, embedder.dimension)
        return cls(parser.options, embedder, store, embedding.embedding_batch, indexing.index_batch)

    async def run(self, path: Path) -> int:
        """Parse, embed and index a file, and return its number of pages."""
        planned = plan(path, self.options)
        extraction = extract(path, 1, planned.pages, planned.engine, self.options)
        vectors: list[NDArray[np.float32]] = []
        for batch in _batches(extraction.chunks, self.embedding_batch):
            vectors.extend((await self.embedder.embed([chunk.text for chunk in batch])).vectors)
        for rows in _batches(list(self._rows(path.name, extraction.chunks, vectors)), self.index_batch):
            await self.store.upsert(rows)
        return planned.pages

    def _rows(
        self, name: str, chunks: Sequence[TextChunk], vectors: Sequence[NDArray[np.float32]]
    ) -> Iterator[StoredChunk]:
        document, task, version = _document(name), uuid4(), version_of(now())
        for n, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True)):
            yield StoredChunk(
                chunk_id=chunk_id(task, self.embedder.model, 0, 0, n),
                document_id=document,
                task_id=task,
                owner=OWNER,
                filename=name,
                version=version,
                text=chunk.text,
                first_page=chunk.first_page,
                last_page=chunk.last_page,
                vector=vector,
            )


def _document(name: str) -> UUID:
    return document_id(OWNER, name)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def _main() -> None:
    loop = await Loop.open()
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            pages = [await loop.run(Path(name)) for name in json.loads(line)]
            print(sum(pages), flush=True)
    finally:
        await loop.store.aclose()
        await loop.embedder.aclose()


if __name__ == "__main__":
    asyncio.run(_main())
