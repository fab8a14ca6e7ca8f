"""Tasks, and the events that a pipeline would report of them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from shared.events import (
    DocumentPlanned,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Stage,
    TaskEvent,
    UnitFailed,
    part_weight,
)
from shared.tasks import TaskRow

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
"""When the tasks of tests are uploaded."""

SECOND = timedelta(seconds=1)

Shard = tuple[int, int]
"""Pages, and parts."""


def new_task(owner: str = "owner", *, at: datetime = START, document: UUID | None = None) -> TaskRow:
    """Return a task that was just uploaded; `dataclasses.replace` it for others."""
    return TaskRow(
        task_id=uuid4(),
        owner=owner,
        filename="a.pdf",
        size=1234,
        sha256="0" * 64,
        document_id=document or uuid4(),
        blob_url="file:///nowhere/a.pdf",
        created_at=at,
        updated_at=at,
    )


def over(task: TaskRow, status: str, at: datetime) -> TaskRow:
    """Return a task that ended at a time."""
    return replace(task, status=status, completed_at=at)


def log_of(task: TaskRow, shards: Sequence[Shard], *, since: datetime = START) -> list[TaskEvent]:
    """Return all events of a document in the order in which one process after the other would report them.

    Every unit takes a second, and starts when the one before it has ended.
    """
    log = [planned(task, shards, since)]
    for shard, (pages, parts) in enumerate(shards):
        log.append(extracted(task, shard, pages, parts, since + len(log) * SECOND))
        for part in range(parts):
            weight = part_weight(pages, parts, part)
            log.append(embedded(task, shard, part, weight, since + len(log) * SECOND))
            log.append(indexed(task, shard, part, weight, since + len(log) * SECOND))
    return log


def planned(task: TaskRow, shards: Sequence[Shard], at: datetime) -> TaskEvent:
    """Return the event of a plan."""
    return DocumentPlanned(
        task_id=task.task_id,
        started_at=at,
        finished_at=at + SECOND,
        pages=sum(pages for pages, _ in shards),
        shards=len(shards),
        engine="pdfium",
        metadata={"title": "A title"},
    )


def extracted(task: TaskRow, shard: int, pages: int, parts: int, at: datetime) -> TaskEvent:
    """Return the event of a shard; a shard without parts has no text."""
    return ShardExtracted(
        task_id=task.task_id,
        started_at=at,
        finished_at=at + SECOND,
        shard=shard,
        pages=pages,
        pages_without_text=0 if parts else pages,
        characters=100 * parts,
        chunks=3 * parts,
        parts=parts,
    )


def embedded(task: TaskRow, shard: int, part: int, weight: int, at: datetime, took: timedelta = SECOND) -> TaskEvent:
    """Return the event of a part that has its vectors."""
    return PartEmbedded(
        task_id=task.task_id,
        started_at=at,
        finished_at=at + took,
        shard=shard,
        part=part,
        weight=weight,
        tokens=7,
        model="a-model",
        dimension=256,
    )


def indexed(task: TaskRow, shard: int, part: int, weight: int, at: datetime) -> TaskEvent:
    """Return the event of a part that can be searched."""
    return PartIndexed(
        task_id=task.task_id, started_at=at, finished_at=at + SECOND, shard=shard, part=part, weight=weight
    )


def failed(task: TaskRow, stage: Stage, shard: int, part: int, at: datetime, message: str = "no use") -> TaskEvent:
    """Return the event of a unit that failed for good."""
    return UnitFailed(
        task_id=task.task_id,
        stage=stage,
        shard=shard,
        part=part,
        code="permanent_failure",
        message=message,
        failed_at=at,
    )
