"""What many tests need: records, events and rows that are right, to be changed where a test looks."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.structs import RecordMetadata
from numpy.typing import NDArray
from pydantic import BaseModel
from typing_extensions import override

from services.gateway.tasks import Tasks
from shared.broker import Record
from shared.events import (
    Chunk,
    ChunksEmbedded,
    ChunksExtracted,
    DocumentPlanned,
    DocumentSubmitted,
    PagesRequested,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Stage,
    TaskUpdated,
    UnitFailed,
    UnitRetryScheduled,
    document_id,
)
from shared.kafka import Outgoing, Publisher
from shared.tasks import TaskRow

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TASK = UUID("11111111-2222-4333-8444-555555555555")
OTHER_TASK = UUID("99999999-2222-4333-8444-555555555555")
OWNER = "alice"
SHA256 = "ab" * 32
DOCUMENT = document_id(OWNER, SHA256)

PATIENCE = timedelta(seconds=10)
"""How long a test waits for what happens within milliseconds, so that it fails rather than hangs."""


def patience() -> AbstractAsyncContextManager[object]:
    """Bound a wait for an event that is sure to come."""
    return asyncio.timeout(PATIENCE.total_seconds())


def after(seconds: float) -> datetime:
    """Return a time after noon."""
    return NOON + timedelta(seconds=seconds)


def record(
    value: bytes | BaseModel | None,
    *,
    topic: str = "chunks.extracted",
    key: bytes | None = str(TASK).encode(),
    headers: Sequence[tuple[str, bytes]] = (),
    partition: int = 0,
    offset: int = 0,
) -> Record:
    """Return a record as a consumer hands it over."""
    data = value.model_dump_json().encode() if isinstance(value, BaseModel) else value
    return ConsumerRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=data,
        checksum=None,
        serialized_key_size=len(key or b""),
        serialized_value_size=len(data or b""),
        headers=headers,
    )


def _made(model: type[Any], fields: dict[str, Any], changes: dict[str, Any]) -> Any:
    return model(**fields | changes)


def row(**changes: Any) -> TaskRow:
    """Return a task that has just been uploaded."""
    fields: dict[str, Any] = {
        "task_id": TASK,
        "owner": OWNER,
        "filename": "x.pdf",
        "size": 1234,
        "sha256": SHA256,
        "document_id": DOCUMENT,
        "blob_url": f"file:///blobs/{OWNER}/{TASK}.pdf",
        "created_at": NOON,
        "updated_at": NOON,
    }
    made: TaskRow = _made(TaskRow, fields, changes)
    return made


_DOCUMENT: dict[str, Any] = {
    "task_id": TASK,
    "document_id": DOCUMENT,
    "owner": OWNER,
    "filename": "x.pdf",
    "submitted_at": NOON,
}
_TIMES = {"started_at": after(1), "finished_at": after(2)}


def submitted(**changes: Any) -> DocumentSubmitted:
    fields = _DOCUMENT | {"blob_url": "file:///blobs/x.pdf", "size": 1234, "sha256": SHA256}
    made: DocumentSubmitted = _made(DocumentSubmitted, fields, changes)
    return made


def pages_requested(**changes: Any) -> PagesRequested:
    fields = _DOCUMENT | {"blob_url": "file:///blobs/x.pdf", "engine": "pdfium"}
    made: PagesRequested = _made(PagesRequested, fields | {"shard": 1, "first_page": 5, "last_page": 8}, changes)
    return made


def extracted(texts: Sequence[str] = ("one", "two"), **changes: Any) -> ChunksExtracted:
    chunks = tuple(Chunk(n=n, text=text, first_page=n + 1, last_page=n + 1) for n, text in enumerate(texts))
    fields = _DOCUMENT | {"shard": 2, "part": 3, "weight": 1500, "chunks": chunks}
    made: ChunksExtracted = _made(ChunksExtracted, fields, changes)
    return made


def embedded(
    texts: Sequence[str] = ("one", "two"),
    *,
    model: str = "tiny",
    vectors: NDArray[np.float32] | None = None,
    **changes: Any,
) -> ChunksEmbedded:
    """Return a part with vectors of four dimensions, unit vectors unless given."""
    matrix = np.eye(len(texts), 4, dtype=np.float32) if vectors is None else vectors
    return ChunksEmbedded.of(extracted(texts, **changes), model=model, vectors=matrix)


def planned(**changes: Any) -> DocumentPlanned:
    fields = {"task_id": TASK, "pages": 4, "shards": 1, "engine": "pdfium", "metadata": {"Title": "X"}} | _TIMES
    made: DocumentPlanned = _made(DocumentPlanned, fields, changes)
    return made


def shard_extracted(**changes: Any) -> ShardExtracted:
    fields = {"task_id": TASK, "shard": 0, "pages": 4, "pages_without_text": 0, "characters": 400} | _TIMES
    made: ShardExtracted = _made(ShardExtracted, fields | {"chunks": 8, "parts": 1}, changes)
    return made


def part_embedded(**changes: Any) -> PartEmbedded:
    fields = {"task_id": TASK, "shard": 0, "part": 0, "weight": 4000, "tokens": 100} | _TIMES
    made: PartEmbedded = _made(PartEmbedded, fields | {"model": "tiny", "dimension": 4}, changes)
    return made


def part_indexed(**changes: Any) -> PartIndexed:
    fields = {"task_id": TASK, "shard": 0, "part": 0, "weight": 4000} | _TIMES
    made: PartIndexed = _made(PartIndexed, fields, changes)
    return made


def unit_failed(**changes: Any) -> UnitFailed:
    fields = {"task_id": TASK, "stage": Stage.EMBED, "shard": 0, "part": 0, "code": "embedding_rejected"}
    made: UnitFailed = _made(UnitFailed, fields | {"message": "no such model", "failed_at": after(3)}, changes)
    return made


def retry_scheduled(**changes: Any) -> UnitRetryScheduled:
    fields = {"task_id": TASK, "stage": Stage.EMBED, "shard": 0, "part": 0, "code": "rate_limited", "attempt": 1}
    fields |= {"message": "rate limited", "failed_at": after(3), "parts": 1, "attempts": 4, "retry_at": after(63)}
    made: UnitRetryScheduled = _made(UnitRetryScheduled, fields, changes)
    return made


def updated(version: int, **changes: Any) -> TaskUpdated:
    fields = {"task_id": TASK, "version": version, "status": "running", "progress": 10, "message": "at work"}
    made: TaskUpdated = _made(TaskUpdated, fields | {"stages": {}}, changes)
    return made


class RecordingPublisher(Publisher):
    """Keeps what it is asked to publish; `error` makes it fail, `gate` holds it back."""

    def __init__(self) -> None:
        self.published: list[Outgoing] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    @override
    async def publish(self, records: Iterable[Outgoing]) -> list[RecordMetadata]:
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [self._keep(record) for record in records]

    @override
    async def ping(self) -> bool:
        return self.error is None and self.gate.is_set()

    def _keep(self, record: Outgoing) -> RecordMetadata:
        offset = len(self.on(record.topic))
        self.published.append(record)
        return RecordMetadata(record.topic, 0, TopicPartition(record.topic, 0), offset, None, 0, None)

    def on(self, topic: str) -> list[Outgoing]:
        """Return what was published on a topic."""
        return [record for record in self.published if record.topic == topic]


class TasksInMemory(Tasks):
    """Tasks without a database; `error` stands for one that is away."""

    def __init__(self, *rows: TaskRow) -> None:
        self.rows = {task.task_id: task for task in rows}
        self.dispatched: dict[UUID, datetime] = {}
        self.error: Exception | None = None

    @override
    async def insert(self, task: TaskRow) -> None:
        if self.error is not None:
            raise self.error
        self.rows[task.task_id] = task

    @override
    async def mark_dispatched(self, task: TaskRow, at: datetime) -> None:
        self.dispatched[task.task_id] = at

    @override
    async def get(self, owner: str, task_id: UUID) -> TaskRow | None:
        task = self.rows.get(task_id)
        return task if task and task.owner == owner else None

    @override
    async def get_many(self, task_ids: Sequence[UUID]) -> list[TaskRow]:
        return [self.rows[task_id] for task_id in task_ids if task_id in self.rows]
