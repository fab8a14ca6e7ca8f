"""What lives as long as the parser."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from services.parser.config import ParserSettings
from services.parser.parse import DocumentParser
from services.parser.workers import Workers
from shared.blobs import BlobStore
from shared.embedding import embedding_dimension
from shared.stage import Runtime


@dataclass(frozen=True)
class Context:
    """The parser's child processes and what works with them."""

    runtime: Runtime
    parser: DocumentParser

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: ParserSettings, runtime: Runtime) -> AsyncIterator[Self]:
        """Start the child processes, and end them at the end."""
        workers = Workers(settings.options)
        try:
            await workers.start()
            yield cls(runtime, DocumentParser(workers, BlobStore(settings), embedding_dimension(settings)))
        finally:
            await workers.aclose()
