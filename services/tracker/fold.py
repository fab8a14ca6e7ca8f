"""The fold: what each event does to its task. Pure; any order of the same events ends in the same row.

Three things make it commutative. Counters only add, and only for units that were not counted before, which the
store decides. Times are the earliest start and the latest end. And of several failures the one that happened first
is the reason, whichever arrives first.

A race remains: a unit of which one owner failed for good and another succeeded. Whichever event arrives first then
decides whether the task is failed or completed; the parts that are done stay recorded, and a replay has nothing
left to do but to complete.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from shared.events import (
    PAGE_WEIGHT,
    DocumentPlanned,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Stage,
    TaskEvent,
    UnitFailed,
)
from shared.tasks import TaskRow, TaskStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit:
    """The identity of what an event reports on, and whether it is done or failed."""

    stage: str
    shard: int
    part: int
    done: bool
    started_at: datetime | None
    finished_at: datetime


def unit_of(event: TaskEvent) -> Unit:
    """Return the unit of work that an event reports on."""
    match event:
        case DocumentPlanned():
            return Unit("plan", 0, 0, True, event.started_at, event.finished_at)
        case ShardExtracted():
            return Unit(Stage.PARSE, event.shard, 0, True, event.started_at, event.finished_at)
        case PartEmbedded():
            return Unit(Stage.EMBED, event.shard, event.part, True, event.started_at, event.finished_at)
        case PartIndexed():
            return Unit(Stage.INDEX, event.shard, event.part, True, event.started_at, event.finished_at)
        case UnitFailed():
            return Unit(event.stage, event.shard, event.part, False, None, event.failed_at)


def apply(task: TaskRow, event: TaskEvent) -> None:
    """Add to `task` what `event` reports, which must not have been counted before; `settle` follows."""
    match event:
        case DocumentPlanned():
            task.pages, task.shards, task.metadata = event.pages, event.shards, event.metadata
            _span(task, Stage.PARSE, event.started_at, None)
        case ShardExtracted():
            _extracted(task, event)
        case PartEmbedded():
            task.embed_done += 1
            task.embed_weight += event.weight
            task.tokens += event.tokens
            task.model, task.dimension = event.model, event.dimension
            _span(task, Stage.EMBED, event.started_at, event.finished_at)
        case PartIndexed():
            task.index_done += 1
            task.index_weight += event.weight
            _span(task, Stage.INDEX, event.started_at, event.finished_at)
        case UnitFailed():
            _failed(task, event)


def settle(task: TaskRow) -> bool:
    """Set the status that follows from what was applied. What is final stays final.

    Returns
    -------
    bool
        Whether the task has just ended.
    """
    if task.final:
        return False
    if task.failed_at is not None:
        task.status, task.completed_at = TaskStatus.FAILED, task.failed_at
    elif task.complete:
        ends = (task.parse_finished_at, task.embed_finished_at, task.index_finished_at)
        task.status, task.completed_at = TaskStatus.COMPLETED, max(filter(None, ends))
    else:
        task.status = TaskStatus.RUNNING
    return task.final


def _extracted(task: TaskRow, event: ShardExtracted) -> None:
    weight = event.pages * PAGE_WEIGHT
    task.parse_done += 1
    task.parse_weight += weight
    task.parts += event.parts
    task.pages_without_text += event.pages_without_text
    task.characters += event.characters
    task.chunks += event.chunks
    if event.parts == 0:  # nothing will come of these pages, so nothing is left to do for them
        task.embed_weight += weight
        task.index_weight += weight
    _span(task, Stage.PARSE, event.started_at, event.finished_at)


def _failed(task: TaskRow, event: UnitFailed) -> None:
    """Keep the earliest failure; its other fields break a tie, so that the choice never depends on the order."""
    known = (task.failed_at, task.error_stage or "", task.error_code or "", task.error_message or "")
    new = (event.failed_at, event.stage.value, event.code, event.message)
    if known[0] is None or new < (known[0], *known[1:]):
        task.failed_at, task.error_stage, task.error_code, task.error_message = new
        if task.status == TaskStatus.FAILED:
            task.completed_at = event.failed_at


def _span(task: TaskRow, stage: Stage, started: datetime, finished: datetime | None) -> None:
    _keep(task, f"{stage}_started_at", min, started)
    _keep(task, "started_at", min, started)
    if finished is not None:
        _keep(task, f"{stage}_finished_at", max, finished)


def _keep(task: TaskRow, name: str, choose: Callable[..., Any], value: datetime) -> None:
    known = getattr(task, name)
    setattr(task, name, value if known is None else choose(known, value))
