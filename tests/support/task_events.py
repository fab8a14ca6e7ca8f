"""Tasks, and the events that a pipeline would report of them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from services.gateway.tasks import Tasks
from shared.events import Stage, TaskEvent, part_weight
from shared.tasks import TaskRow
from tests.support import builders

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
"""When the tasks of tests are uploaded."""

SECOND = timedelta(seconds=1)

Shard = tuple[int, int]
"""Pages, and parts."""


def new_task(owner: str = "owner", *, at: datetime = START, document: UUID | None = None) -> TaskRow:
    """Return a task that was just uploaded; `dataclasses.replace` it for others."""
    return builders.row(task_id=uuid4(), owner=owner, document_id=document or uuid4(), created_at=at, updated_at=at)


async def current(tasks: Tasks, task: TaskRow) -> TaskRow:
    """Return the row of a task as it is now."""
    [row] = await tasks.get_many([task.task_id])
    return row


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


def _timed(task: TaskRow, at: datetime, took: timedelta = SECOND) -> dict[str, Any]:
    return {"task_id": task.task_id, "started_at": at, "finished_at": at + took}


def planned(task: TaskRow, shards: Sequence[Shard], at: datetime) -> TaskEvent:
    """Return the event of a plan."""
    return builders.planned(**_timed(task, at), pages=sum(pages for pages, _ in shards), shards=len(shards))


def extracted(task: TaskRow, shard: int, pages: int, parts: int, at: datetime) -> TaskEvent:
    """Return the event of a shard; a shard without parts has no text."""
    counts = {"characters": 100 * parts, "chunks": 3 * parts, "parts": parts}
    without_text = 0 if parts else pages
    return builders.shard_extracted(
        **_timed(task, at), shard=shard, pages=pages, pages_without_text=without_text, **counts
    )


def embedded(task: TaskRow, shard: int, part: int, weight: int, at: datetime, took: timedelta = SECOND) -> TaskEvent:
    """Return the event of a part that has its vectors."""
    return builders.part_embedded(**_timed(task, at, took), shard=shard, part=part, weight=weight)


def indexed(task: TaskRow, shard: int, part: int, weight: int, at: datetime) -> TaskEvent:
    """Return the event of a part that can be searched."""
    return builders.part_indexed(**_timed(task, at), shard=shard, part=part, weight=weight)


def retried(task: TaskRow, stage: Stage, shard: int, part: int, at: datetime, **changes: Any) -> TaskEvent:
    """Return the event of a unit that failed and is tried again a minute later."""
    times = {"failed_at": at, "retry_at": at + timedelta(minutes=1)}
    unit = {"task_id": task.task_id, "stage": stage, "shard": shard, "part": part}
    return builders.retry_scheduled(**unit | times | changes)


def failed(
    task: TaskRow, stage: Stage, shard: int, part: int, at: datetime, message: str = "no use", **changes: Any
) -> TaskEvent:
    """Return the event of a unit that failed for good."""
    unit = {"task_id": task.task_id, "stage": stage, "shard": shard, "part": part}
    why = {"code": "permanent_failure", "message": message, "failed_at": at}
    return builders.unit_failed(**unit | why | changes)
