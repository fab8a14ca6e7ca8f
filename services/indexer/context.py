"""What lives as long as the indexer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from services.indexer.config import IndexerSettings
from services.indexer.index import PartIndexer
from shared.embedding import embedding_dimension, model_name
from shared.stage import Runtime
from shared.vectors import create_vector_store


@dataclass(frozen=True)
class Context:
    """The vector store and what works with it."""

    runtime: Runtime
    parts: PartIndexer

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: IndexerSettings, runtime: Runtime) -> AsyncIterator[Self]:
        """Open the vector store, and close it at the end."""
        model, dimension = model_name(settings), embedding_dimension(settings)
        store = await create_vector_store(settings, model, dimension)
        parts = PartIndexer(store, model, dimension, batch=settings.index_batch, concurrency=settings.index_concurrency)
        try:
            yield cls(runtime, parts)
        finally:
            await parts.aclose()
            await store.aclose()
