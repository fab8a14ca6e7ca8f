"""How documents are parsed."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

EngineName = Literal["pdfium", "pypdf"]

MEBIBYTE = 1024 * 1024
MAX_CHUNK_SIZE = 100_000
"""Characters; even at four bytes each, a chunk of this size still fits into one event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserOptions:
    """Options of the parser.

    Attributes
    ----------
    engine
        `pdfium` (fast) or `pypdf` (pure Python) alone, or `auto`: pdfium, and pypdf wherever pdfium fails or finds
        no text.
    chunk_size
        Most characters in a chunk.
    chunk_overlap
        Most characters that a chunk repeats from the one before it.
    workers
        Child processes, and so documents or shards that are parsed at the same time.
    memory_limit
        Bytes of address space that one document may take in a child, on top of what an idle child has.
    timeout
        Longest time for one plan or one shard, a second opinion included.
    max_tasks
        Tasks after which a child is replaced, so that what the libraries leak stays small.
    """

    engine: Literal["auto", "pdfium", "pypdf"] = "auto"
    chunk_size: int = 1000
    chunk_overlap: int = 100
    workers: int = 2
    memory_limit: int = 1024 * MEBIBYTE
    timeout: timedelta = timedelta(seconds=300)  # the hard limit of a unit of work; real shards take 1-10 s
    max_tasks: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk_size must be between 1 and {MAX_CHUNK_SIZE} characters, not {self.chunk_size}")
        if not 0 <= self.chunk_overlap < self.chunk_size:
            raise ValueError(
                f"chunk_overlap must be at least 0 and less than chunk_size ({self.chunk_size}), "
                f"not {self.chunk_overlap}"
            )
        for name in ("workers", "memory_limit", "max_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.timeout <= timedelta(0):
            raise ValueError(f"timeout must be longer than nothing, not {self.timeout}")

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """The engines to ask, in order."""
        return ("pdfium", "pypdf") if self.engine == "auto" else (self.engine,)
