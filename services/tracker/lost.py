"""What there is still to do for a task, as the records that ask for it.

Text and vectors are kept nowhere but in Kafka. What got lost of them is made again from the PDF: the parser extracts
the shard, which gives the same parts again, and sends on only those that are asked for. Parts that were cut with other
settings since never come; such a task fails in the end.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import asyncpg

from services.tracker.fold import UnitState
from shared.events import Event, PagesRequested, Step
from shared.kafka import Outgoing
from shared.shards import shards_of
from shared.tasks import TaskRow, submitted
from shared.topics import DOCUMENTS_SUBMITTED, PAGES_REQUESTED

UNITS = "SELECT * FROM task_units WHERE task_id = $1"

ENGINE = "pdfium"
"""What tasks were planned with before their rows said so."""


def document(task: TaskRow) -> Outgoing:
    """Ask for the whole document."""
    return _asking(DOCUMENTS_SUBMITTED.name, str(task.task_id), submitted(task), task.replays)


def shard(task: TaskRow, number: int, parts: Iterable[int] | None = None) -> Outgoing:
    """Ask for one shard of a planned document, or for some of its parts."""
    first, last = shards_of(task.pages or 0)[number]
    source = submitted(task)
    request = PagesRequested(
        **source.model_dump(include={"task_id", "document_id", "owner", "filename", "submitted_at", "blob_url"}),
        engine=task.engine or ENGINE,
        shard=number,
        first_page=first,
        last_page=last,
        parts=None if parts is None else tuple(parts),
    )
    return _asking(PAGES_REQUESTED.name, f"{task.task_id}:{number}", request, task.replays)


def unit(task: TaskRow, record: asyncpg.Record) -> Outgoing:
    """Ask for one unit, a row of `task_units`, whose record is gone."""
    match Step(record["step"]):
        case Step.PLAN:
            return document(task)
        case _ if task.pages is None or record["shard"] >= len(shards_of(task.pages)):  # a key may say anything
            return document(task)
        case Step.PARSE:
            return shard(task, record["shard"])
        case Step.EMBED | Step.INDEX:
            return shard(task, record["shard"], [record["part"]])


def everything(task: TaskRow, units: Iterable[asyncpg.Record]) -> Iterator[Outgoing]:
    """Ask for all that is not done."""
    if task.pages is None:
        yield document(task)
        return
    done = {(unit["step"], unit["shard"], unit["part"]): unit for unit in units if unit["state"] == UnitState.DONE}
    for number in range(len(shards_of(task.pages))):
        parsed = done.get((Step.PARSE, number, 0))
        if parsed is None or parsed["parts"] is None:
            yield shard(task, number)
        elif missing := [part for part in range(parsed["parts"]) if not _through(done, number, part)]:
            yield shard(task, number, missing)


def _through(done: Collection[tuple[str, int, int]], number: int, part: int) -> bool:
    """Tell whether a part is embedded and indexed, and both was reported."""
    return (Step.EMBED, number, part) in done and (Step.INDEX, number, part) in done


def _asking(topic: str, key: str, request: Event, run: int) -> Outgoing:
    """Make a record of a run, so that what fails of it is not taken for the failure of an earlier one."""
    return replace(Outgoing.of(topic, key, request), headers=[("run", str(run).encode())] if run else [])
