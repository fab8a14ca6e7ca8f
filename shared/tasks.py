"""A task: the row in PostgreSQL, and what the API and the event stream show of it."""

import math
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, Field

from shared.clock import Clock, now
from shared.events import PAGE_WEIGHT, DocumentCompleted, DocumentSubmitted, Stage, TaskCanceled, TaskUpdated


class TaskStatus(StrEnum):
    """Where a task is; the last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"


FINAL = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELED})

STAGE_SHARES = {Stage.PARSE: 33, Stage.EMBED: 33, Stage.INDEX: 34}
"""Percent of a task's progress that each stage brings."""


@dataclass(slots=True)
class TaskRow:
    """A row of the table `tasks`, whose migration describes the columns; `TaskRow(**record)` reads one."""

    task_id: UUID
    owner: str
    filename: str
    size: int
    sha256: str
    document_id: UUID
    blob_url: str
    created_at: datetime
    updated_at: datetime
    task_type: str = "document_process"
    status: str = TaskStatus.PENDING
    version: int = 1
    dispatched_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    pages: int | None = None
    shards: int | None = None
    parts: int = 0
    parse_done: int = 0
    embed_done: int = 0
    index_done: int = 0
    parse_weight: int = 0
    embed_weight: int = 0
    index_weight: int = 0
    parse_started_at: datetime | None = None
    embed_started_at: datetime | None = None
    index_started_at: datetime | None = None
    parse_finished_at: datetime | None = None
    embed_finished_at: datetime | None = None
    index_finished_at: datetime | None = None
    pages_without_text: int = 0
    characters: int = 0
    chunks: int = 0
    tokens: int = 0
    model: str | None = None
    dimension: int | None = None
    error_stage: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    failed_at: datetime | None = None
    retry_count: int = 0
    engine: str | None = None
    next_retry_at: datetime | None = None
    retry_message: str | None = None
    retry_attempt: int | None = None
    retry_attempts: int | None = None
    replays: int = 0
    redispatched_at: datetime | None = None
    alerted_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether the task is over."""
        return self.status in FINAL

    @property
    def parsed(self) -> bool:
        """Whether all shards are extracted, so that the number of parts is known."""
        return self.shards is not None and self.parse_done >= self.shards

    @property
    def complete(self) -> bool:
        """Whether all is done that there is to do.

        Every part is embedded before it is indexed, but what embedder and indexer report of it may arrive in any order,
        and a result must not be told before it is whole.
        """
        return self.parsed and self.embed_done >= self.parts and self.index_done >= self.parts

    @property
    def progress(self) -> int:
        """Percent done, weighted by pages; 100 is for the completed alone."""
        if self.status == TaskStatus.COMPLETED:
            return 100
        if self.pages is None:
            return 0
        share = (
            STAGE_SHARES[Stage.PARSE] * self.parse_weight
            + STAGE_SHARES[Stage.EMBED] * self.embed_weight
            + STAGE_SHARES[Stage.INDEX] * self.index_weight
        )
        return min(share // (self.pages * PAGE_WEIGHT), 99)

    def message(self, at: datetime) -> str:
        """Tell people what happens at this time."""
        match TaskStatus(self.status):
            case TaskStatus.PENDING:
                return "waiting for a parser"
            case TaskStatus.RUNNING:
                return self._retry(at) or self._work_done()
            case TaskStatus.COMPLETED:
                return f"completed: {self.pages} pages, {self.chunks} chunks"
            case TaskStatus.FAILED:
                return f"failed to {self.error_stage}: {self.error_message}"
            case TaskStatus.CANCELED:
                return "canceled"

    def _retry(self, at: datetime) -> str | None:
        """Tell of the retry that is due next, if there is one."""
        if self.next_retry_at is None:
            return None
        seconds = math.ceil((self.next_retry_at - at).total_seconds())
        when = f"in {seconds} s" if seconds > 0 else "now"
        return f"{self.retry_message}; trying again {when} ({self.retry_attempt} of {self.retry_attempts})"

    def _work_done(self) -> str:
        pages = f"parsed {self.parse_weight // PAGE_WEIGHT} of {self.pages or '?'} pages"
        parts = self.parts if self.parsed else "?"
        return f"{pages}, embedded {self.embed_done} and indexed {self.index_done} of {parts} parts"


class StageProgress(BaseModel):
    """How far one stage is with a task; units are shards of pages for parse, parts of chunks for the others."""

    started: datetime | None = Field(description="when its first unit began")
    finished: datetime | None = Field(description="when its last unit ended; null while there is more to do")
    done: int = Field(description="units done")
    total: int | None = Field(description="units in all; null until it is known")


class TaskResult(BaseModel):
    """What became of a completed task."""

    file: str = Field(description="name under which it was uploaded")
    document_id: UUID = Field(description="identity of the content: the same bytes give the same document")
    pages: int
    pages_without_text: int
    content_length: int = Field(description="characters of text")
    chunks: int
    model: str | None = Field(description="embedding model; null where no page had text")
    embedding_dim: int | None
    tokens: int = Field(description="tokens the embedding provider counted")
    warnings: list[str]


class TaskError(BaseModel):
    """Why a task failed."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="for people")
    stage: str


class TaskParams(BaseModel):
    """What was uploaded."""

    filename: str
    size: int = Field(description="bytes")
    sha256: str


class Task(BaseModel):
    """A task as the API shows it."""

    task_id: UUID
    task_type: str
    status: TaskStatus
    progress: int = Field(ge=0, le=100)
    message: str
    params: TaskParams
    result: TaskResult | None
    error: TaskError | None
    retry_count: int = Field(description="how often a part was tried again")
    next_retry_at: datetime | None = Field(
        description="when a part will be tried again; null where none waits for that"
    )
    metadata: dict[str, str] = Field(description="what the PDF says about itself")
    stages: dict[Stage, StageProgress]
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    version: int = Field(description="grows with every change")


def public_task(row: TaskRow, clock: Clock = now) -> Task:
    """Show a row as the API does."""
    return Task(
        task_id=row.task_id,
        task_type=row.task_type,
        status=TaskStatus(row.status),
        progress=row.progress,
        message=row.message(clock()),
        params=TaskParams(filename=row.filename, size=row.size, sha256=row.sha256),
        result=_result(row),
        error=_error(row),
        retry_count=row.retry_count,
        next_retry_at=row.next_retry_at,
        metadata=row.metadata,
        stages=_stages(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        version=row.version,
    )


def update_of(row: TaskRow, clock: Clock = now) -> TaskUpdated:
    """Return the event that tells watchers of a task's new state."""
    result, error = _result(row), _error(row)
    return TaskUpdated(
        task_id=row.task_id,
        version=row.version,
        status=row.status,
        progress=row.progress,
        message=row.message(clock()),
        retry_count=row.retry_count,
        next_retry_at=row.next_retry_at,
        stages={stage: progress.model_dump(mode="json") for stage, progress in _stages(row).items()},
        result=result and result.model_dump(mode="json"),
        error=error and error.model_dump(mode="json"),
    )


def _stages(row: TaskRow) -> dict[Stage, StageProgress]:
    parts = row.parts if row.parsed else None
    return {
        Stage.PARSE: _stage(row.parse_started_at, row.parse_finished_at, row.parse_done, row.shards),
        Stage.EMBED: _stage(row.embed_started_at, row.embed_finished_at, row.embed_done, parts),
        Stage.INDEX: _stage(row.index_started_at, row.index_finished_at, row.index_done, parts),
    }


def _stage(started: datetime | None, latest: datetime | None, done: int, total: int | None) -> StageProgress:
    over = total is not None and done >= total
    return StageProgress(started=started, finished=latest if over else None, done=done, total=total)


def _result(row: TaskRow) -> TaskResult | None:
    if row.status != TaskStatus.COMPLETED or row.pages is None:
        return None
    return TaskResult(
        file=row.filename,
        document_id=row.document_id,
        pages=row.pages,
        pages_without_text=row.pages_without_text,
        content_length=row.characters,
        chunks=row.chunks,
        model=row.model,
        embedding_dim=row.dimension,
        tokens=row.tokens,
        warnings=_warnings(row),
    )


def _warnings(row: TaskRow) -> list[str]:
    if not row.pages_without_text:
        return []
    scanned = ": scanned?" if row.pages_without_text == row.pages else ""
    return [f"no text on {row.pages_without_text} of {row.pages} pages{scanned}"]


def _error(row: TaskRow) -> TaskError | None:
    if row.status != TaskStatus.FAILED or row.error_code is None:
        return None
    return TaskError(code=row.error_code, message=row.error_message or "", stage=row.error_stage or "")


def completed(task: TaskRow) -> DocumentCompleted:
    """Return the event after which the chunks of a document's older versions may go."""
    return DocumentCompleted(
        task_id=task.task_id, document_id=task.document_id, submitted_at=task.created_at, owner=task.owner
    )


def canceled(task: TaskRow) -> TaskCanceled:
    """Return the event that ends the work for a task."""
    return TaskCanceled(task_id=task.task_id, document_id=task.document_id, owner=task.owner)


def submitted(task: TaskRow) -> DocumentSubmitted:
    """Return the event with which a task enters the pipeline."""
    return DocumentSubmitted(
        task_id=task.task_id,
        document_id=task.document_id,
        owner=task.owner,
        filename=task.filename,
        submitted_at=task.created_at,
        blob_url=task.blob_url,
        size=task.size,
        sha256=task.sha256,
    )
