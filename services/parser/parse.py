"""The parser's two steps: plan a document into shards, extract a shard into parts of chunks."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from services.parser.chunking import TextChunk, parts_of
from services.parser.engines import Extraction, Plan
from services.parser.workers import Workers
from shared.blobs import BlobStore
from shared.clock import now
from shared.events import (
    Chunk,
    ChunksExtracted,
    DocumentEvent,
    DocumentPlanned,
    DocumentSubmitted,
    PagesRequested,
    ShardExtracted,
    part_weight,
)
from shared.kafka import Outgoing
from shared.shards import shards_of
from shared.topics import CHUNKS_EXTRACTED, PAGES_REQUESTED, TASK_EVENTS


class DocumentParser:
    """Turns PDFs into chunks.

    Parameters
    ----------
    dimension
        Of the vectors that will join the chunks, so that a part still fits into an event then.
    """

    def __init__(self, workers: Workers, blobs: BlobStore, dimension: int) -> None:
        self._workers = workers
        self._blobs = blobs
        self._dimension = dimension

    async def plan(self, event: DocumentSubmitted) -> list[Outgoing]:
        """Plan a document: request its shards, or extract it at once if it is only one.

        Raises
        ------
        PermanentError
            The document cannot be read; the error says why.
        TransientError
            The blob store is away, or a child process was lost.
        """
        started = now()
        async with self._blobs.local_path(event.blob_url) as path:
            plan, extraction = await self._workers.begin(path)
        shards = shards_of(plan.pages)
        planned = _planned(event, plan, len(shards), started)
        if extraction is not None:
            return [planned, *self._extracted(event, 0, extraction, started)]
        return [planned, *_requests(event, plan.engine, shards)]

    async def extract(self, event: PagesRequested) -> list[Outgoing]:
        """Extract one shard of a planned document, or only some of its parts; raises as `plan` does."""
        started = now()
        async with self._blobs.local_path(event.blob_url) as path:
            extraction = await self._workers.extract(path, event.first_page, event.last_page, event.engine)
        return self._extracted(event, event.shard, extraction, started, event.parts)

    def _extracted(
        self,
        source: DocumentEvent,
        shard: int,
        extraction: Extraction,
        started: datetime,
        wanted: Collection[int] | None = None,
    ) -> list[Outgoing]:
        parts = parts_of(extraction.chunks, self._dimension)
        report = ShardExtracted(
            task_id=source.task_id,
            shard=shard,
            pages=extraction.pages,
            pages_without_text=extraction.pages_without_text,
            characters=extraction.characters,
            chunks=len(extraction.chunks),
            parts=len(parts),
            started_at=started,
            finished_at=now(),
        )
        events = (
            ChunksExtracted(
                **_document(source),
                shard=shard,
                part=number,
                parts=len(parts),
                weight=part_weight(extraction.pages, len(parts), number),
                chunks=_numbered(chunks),
            )
            for number, chunks in enumerate(parts)
            if wanted is None or number in wanted
        )
        return [
            *(Outgoing.of(CHUNKS_EXTRACTED.name, f"{e.task_id}:{shard}:{e.part}", e) for e in events),
            Outgoing.of(TASK_EVENTS.name, str(source.task_id), report),
        ]


def _planned(event: DocumentSubmitted, plan: Plan, shards: int, started: datetime) -> Outgoing:
    planned = DocumentPlanned(
        task_id=event.task_id,
        pages=plan.pages,
        shards=shards,
        engine=plan.engine,
        metadata=plan.metadata,
        started_at=started,
        finished_at=now(),
    )
    return Outgoing.of(TASK_EVENTS.name, str(event.task_id), planned)


def _requests(event: DocumentSubmitted, engine: str, shards: Sequence[tuple[int, int]]) -> Iterator[Outgoing]:
    for number, (first, last) in enumerate(shards):
        request = PagesRequested(
            **_document(event),
            blob_url=event.blob_url,
            engine=engine,
            shard=number,
            first_page=first,
            last_page=last,
        )
        yield Outgoing.of(PAGES_REQUESTED.name, f"{event.task_id}:{number}", request)


def _numbered(chunks: Sequence[TextChunk]) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(n=n, text=chunk.text, first_page=chunk.first_page, last_page=chunk.last_page)
        for n, chunk in enumerate(chunks)
    )


def _document(source: DocumentEvent) -> dict[str, object]:
    return {name: getattr(source, name) for name in DocumentEvent.model_fields}
