"""The parser's settings."""

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from services.parser.engines import ParserOptions
from services.parser.engines.options import MAX_CHUNK_SIZE, MEBIBYTE
from shared.settings import BlobSettings, EmbeddingSettings, Seconds
from shared.worker import WorkerSettings


class ParserSettings(WorkerSettings, BlobSettings, EmbeddingSettings):
    """What the parser needs to know; of the embedding only the dimension, to size its parts."""

    parser_engine: Literal["auto", "pdfium", "pypdf"] = Field(
        "auto",
        title="Parser engine",
        description="pdfium is fast, pypdf the second opinion; auto asks pypdf where pdfium fails or finds no text.",
    )
    parser_workers: int = Field(
        2, ge=1, title="Parser processes", description="Child processes, and so shards parsed at the same time."
    )
    parser_memory_limit_mb: int = Field(
        1024, ge=256, title="Parser memory", description="MiB that one document may take in a child process."
    )
    parser_timeout: Seconds = Field(
        timedelta(seconds=300),
        title="Parser timeout",
        gt=timedelta(0),
        le=timedelta(hours=1),
        description="Longest time for one shard, in seconds, before its child is killed.",
    )
    chunk_size: int = Field(
        1000, ge=1, le=MAX_CHUNK_SIZE, title="Chunk size", description="Most characters in a chunk."
    )
    chunk_overlap: int = Field(
        100, ge=0, title="Chunk overlap", description="Most characters a chunk repeats from the one before it."
    )

    @model_validator(mode="after")
    def _overlap_below_size(self) -> "ParserSettings":
        if self.chunk_overlap >= self.chunk_size:
            raise ValueError(f"CHUNK_OVERLAP={self.chunk_overlap} must be less than CHUNK_SIZE={self.chunk_size}")
        return self

    @model_validator(mode="after")
    def _hard_limit_above_the_soft_one(self) -> "ParserSettings":
        hard, soft = self.parser_timeout.total_seconds(), self.unit_timeout.total_seconds()
        if hard <= soft:
            raise ValueError(
                f"PARSER_TIMEOUT={hard:g} must be longer than UNIT_TIMEOUT={soft:g}: it ends what did not stop by then"
            )
        return self

    @property
    def options(self) -> ParserOptions:
        """The options of the child processes."""
        return ParserOptions(
            engine=self.parser_engine,
            chunk_size=self.chunk_size,
            chunk_overlap=self.chunk_overlap,
            workers=self.parser_workers,
            memory_limit=self.parser_memory_limit_mb * MEBIBYTE,
            timeout=self.parser_timeout,
        )
