"""What lives as long as the embedder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from services.embedder.config import EmbedderSettings
from services.embedder.embed import PartEmbedder
from shared.embedding import create_embedder
from shared.stage import Runtime


@dataclass(frozen=True)
class Context:
    """The embedding model or provider, and what works with it."""

    runtime: Runtime
    parts: PartEmbedder

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: EmbedderSettings, runtime: Runtime) -> AsyncIterator[Self]:
        """Load the model or open the client, and close it at the end."""
        embedder = create_embedder(settings)
        parts = PartEmbedder(embedder, batch=settings.embedding_batch, concurrency=settings.embedding_concurrency)
        try:
            yield cls(runtime, parts)
        finally:
            await parts.aclose()
            await embedder.aclose()
