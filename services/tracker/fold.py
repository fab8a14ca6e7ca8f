"""The fold: what each event does to its task. Pure; any order of the same events ends in the same row.

Three things make it commutative. Counters only add, and only for units and retries that were not counted before, which
the store decides. Times are the earliest start and the latest end. And of several failures the one that happened first
is the reason, whichever arrives first.

A race remains: a unit of which one owner failed for good and another succeeded. Whichever event arrives first then
decides whether the task is failed or completed; the parts that are done stay recorded, and a replay has nothing
left to do but to complete.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from shared.events import (
    PAGE_WEIGHT,
    DeadLetter,
    DocumentPlanned,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Stage,
    Step,
    TaskEvent,
    UnitFailed,
    UnitRetryScheduled,
)
from shared.tasks import TaskRow, TaskStatus

T = TypeVar("T")

MAX_REASON = 200
"""Characters of an error in a message about a retry: one line for people; the whole text is kept with the retry."""


class UnitState(StrEnum):
    """What is known of a unit."""

    DONE = "done"
    FAILED = "failed"
    OPEN = "open"  # replayed, and not heard of again


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The identity of what an event reports on, and how it ended; a row of the table `task_units`."""

    step: Step
    shard: int = 0
    part: int = 0
    state: UnitState = UnitState.DONE
    run: int = 0
    started_at: datetime | None = None
    finished_at: datetime
    parts: int | None = None
    dead_letter: DeadLetter | None = None


Ended = DocumentPlanned | ShardExtracted | PartEmbedded | PartIndexed | UnitFailed
"""The events that end a unit."""


def step_of(event: UnitFailed | UnitRetryScheduled) -> Step:
    """Return the step of a unit that did not succeed."""
    return event.step or Step(event.stage.value)


def unit_of(event: Ended) -> Unit:
    """Return the unit of work that an event reports on."""
    match event:
        case DocumentPlanned():
            return Unit(step=Step.PLAN, started_at=event.started_at, finished_at=event.finished_at)
        case ShardExtracted():
            return Unit(
                step=Step.PARSE,
                shard=event.shard,
                started_at=event.started_at,
                finished_at=event.finished_at,
                parts=event.parts,
            )
        case PartEmbedded() | PartIndexed():
            return Unit(
                step=Step.EMBED if isinstance(event, PartEmbedded) else Step.INDEX,
                shard=event.shard,
                part=event.part,
                started_at=event.started_at,
                finished_at=event.finished_at,
            )
        case UnitFailed():
            return Unit(
                step=step_of(event),
                shard=event.shard,
                part=event.part,
                state=UnitState.FAILED,
                run=event.run,
                finished_at=event.failed_at,
                dead_letter=event.dead_letter,
            )


def apply(task: TaskRow, event: TaskEvent) -> None:
    """Add to `task` what `event` reports, which must not have been counted before; `settle` follows."""
    match event:
        case DocumentPlanned():
            task.pages, task.shards, task.metadata, task.engine = (
                event.pages,
                event.shards,
                event.metadata,
                event.engine,
            )
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
        case UnitRetryScheduled():
            task.retry_count += 1
        case UnitFailed():
            _failed(task, event)


def await_retry(task: TaskRow, retry: UnitRetryScheduled | None) -> None:
    """Note the retry that is due next, of those that are still to come; None where there is none."""
    if retry is None or task.final:
        task.next_retry_at = task.retry_message = task.retry_attempt = task.retry_attempts = None
        return
    task.next_retry_at = retry.retry_at
    task.retry_message = f"{_work(task, retry)} failed: {' '.join(retry.message.split())[:MAX_REASON]}"
    task.retry_attempt, task.retry_attempts = retry.attempt + 1, retry.attempts


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


def _work(task: TaskRow, retry: UnitRetryScheduled) -> str:
    """Name a unit's work for people, who count from 1."""
    shard = f"shard {retry.shard + 1}/{task.shards or '?'}"
    match step_of(retry):
        case Step.PLAN:
            return "reading the document"
        case Step.PARSE:
            return f"parsing {shard}"
        case Step.EMBED | Step.INDEX as step:
            doing = "embedding" if step is Step.EMBED else "indexing"
            of_shard = "" if task.shards == 1 else f" of {shard}"
            return f"{doing} part {retry.part + 1}/{retry.parts or '?'}{of_shard}"


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
