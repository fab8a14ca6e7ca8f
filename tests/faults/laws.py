"""What must be true of every task once all is quiet. Each law yields what breaks it."""

from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

from shared.events import (
    DocumentPlanned,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Step,
    TaskEvent,
    UnitFailed,
    UnitRetryScheduled,
)
from shared.tasks import TaskRow, TaskStatus, public_task
from tests.faults.evidence import Evidence
from tests.faults.ledger import Ledger

Law = Callable[[Evidence, Ledger], Iterator[str]]

Unit = tuple[Step, int, int, int]
"""Step, shard, part, and how often it was replayed."""


def ends_as_it_should(found: Evidence, ledger: Ledger) -> Iterator[str]:
    """Every accepted task is there, and every task ends as its document lets expect."""
    for task_id, upload in ledger.accepted.items():
        if task_id not in found.tasks:
            yield f"{task_id} ({upload.name}) was accepted, and is lost"
    for task_id, task in found.tasks.items():
        known = ledger.accepted.get(task_id) or ledger.doubtful.get(task.filename)
        if known is not None and task.status not in known.ends:
            yield (
                f"{task_id} ({known.kind}) should be {' or '.join(known.ends)}, and is {task.status}:"
                f" {task.error_code} {task.error_message or ''}"
            )
        elif known is not None and task.status == TaskStatus.FAILED and task.error_code != known.error:
            yield f"{task_id} ({known.kind}) should fail as {known.error}, and fails as {task.error_code}"


def nobody_else_is_there(found: Evidence, ledger: Ledger) -> Iterator[str]:
    """A task that nobody was told of comes from an upload whose answer was lost, and from each at most one."""
    names = Counter(task.filename for task_id, task in found.tasks.items() if task_id not in ledger.accepted)
    for name, tasks in names.items():
        if name not in ledger.doubtful:
            yield f"{name} has a task that was never accepted"
        elif tasks > 1:
            yield f"{name} has {tasks} tasks"


def all_are_over(found: Evidence, _: Ledger) -> Iterator[str]:
    """Every task is over, and what follows from that was published."""
    for task_id, task in found.tasks.items():
        if not task.final or task.completed_at is None:
            yield f"{task_id} is {task.status}, completed at {task.completed_at}"
        if task.dispatched_at is None:
            yield f"{task_id} is {task.status} and still in the outbox"
        if task.next_retry_at is not None:
            yield f"{task_id} is {task.status} and waits for a retry"


def chunks_are_those_of_the_newest(found: Evidence, _: Ledger) -> Iterator[str]:
    """The index has each chunk of a document's newest completed task once, and of others what they recorded."""
    newest: dict[UUID, TaskRow] = {}
    for task in sorted(found.tasks.values(), key=lambda task: task.created_at):
        if task.status == TaskStatus.COMPLETED:
            newest[task.document_id] = task
    for task_id, task in found.tasks.items():
        indexed, wanted = found.chunks.get(task_id, ()), _chunks_recorded(found, task_id)
        superseded = task.document_id in newest and task.created_at < newest[task.document_id].created_at
        if len(set(indexed)) < len(indexed):
            yield f"{task_id} has chunks twice in the index"
        if task.status == TaskStatus.CANCELED or superseded:
            wanted = frozenset()
        elif task.status == TaskStatus.COMPLETED and len(wanted) != task.chunks:
            yield f"{task_id} counts {task.chunks} chunks, and {len(wanted)} are recorded"
        if set(indexed) != wanted:
            more, less = len(set(indexed) - wanted), len(wanted - set(indexed))
            yield f"{task_id} ({task.status}, superseded: {superseded}) has {more} chunks too many, {less} too few"
    for task_id in found.chunks.keys() - found.tasks.keys():
        yield f"{task_id} has chunks in the index, and no row"


def blobs_and_rows_belong_together(found: Evidence, _: Ledger) -> Iterator[str]:
    """No blob without a task, no task without its blob."""
    wanted = {task.blob_url for task in found.tasks.values()}
    yield from (f"{url} belongs to no task" for url in found.blobs - wanted)
    yield from (f"{url} of a task is gone" for url in wanted - found.blobs)


def units_and_events_tell_the_same(found: Evidence, _: Ledger) -> Iterator[str]:
    """What stands in the tables was reported, and what was reported stands there, but for canceled tasks."""
    for task_id, task in found.tasks.items():
        units = {(u["step"], u["shard"], u["part"], u["run"]): u["state"] for u in found.units.get(task_id, ())}
        retries = {(r["step"], r["shard"], r["part"], r["run"], r["attempt"]) for r in found.retries.get(task_id, ())}
        events = found.events.get(task_id, ())
        done = {unit_of(event)[:3] for event in events if _done(event)}
        failed = {unit_of(event) for event in events if isinstance(event, UnitFailed)}
        retried = {(*unit_of(event), event.attempt) for event in events if isinstance(event, UnitRetryScheduled)}
        for unit, state in units.items():
            if (state == "done" and unit[:3] not in done) or (state == "failed" and unit not in failed):
                yield f"{task_id} has the unit {unit} {state}, of which nothing was reported"
            if state == "open":
                yield f"{task_id} has the unit {unit} open"
        if not retries <= retried:
            yield f"{task_id} has retries that nobody reported: {retries - retried}"
        if task.status != TaskStatus.CANCELED:
            known = {unit[:3] for unit, state in units.items() if state == "done"}
            if not done <= known:
                yield f"{task_id} misses units that were reported: {done - known}"
            if not retried <= retries:
                yield f"{task_id} misses retries that were reported: {retried - retries}"


def counters_are_the_sums_of_units(found: Evidence, _: Ledger) -> Iterator[str]:
    """The row counts each unit once, whatever came twice."""
    for task_id, task in found.tasks.items():
        if task.status == TaskStatus.CANCELED:
            continue  # what came after that was not counted
        events = {unit_of(event): event for event in found.events.get(task_id, ()) if _done(event)}.values()
        shards = [event for event in events if isinstance(event, ShardExtracted)]
        done = Counter(unit["step"] for unit in found.units.get(task_id, ()) if unit["state"] == "done")
        counted = {
            "parse_done": (task.parse_done, done[Step.PARSE]),
            "embed_done": (task.embed_done, done[Step.EMBED]),
            "index_done": (task.index_done, done[Step.INDEX]),
            "retry_count": (task.retry_count, len(found.retries.get(task_id, ()))),
            "parts": (task.parts, sum(event.parts for event in shards)),
            "chunks": (task.chunks, sum(event.chunks for event in shards)),
            "characters": (task.characters, sum(event.characters for event in shards)),
            "shards": (task.shards, next((e.shards for e in events if isinstance(e, DocumentPlanned)), None)),
        }
        wrong = {name: pair for name, pair in counted.items() if pair[0] != pair[1]}
        if wrong:
            yield f"{task_id} ({task.status}) counts otherwise than its units, row and units: {wrong}"


def what_is_shown_is_the_row(found: Evidence, ledger: Ledger) -> Iterator[str]:
    """The API shows the row, and the event stream ended with it."""
    for task_id, task in found.tasks.items():
        row = public_task(task).model_dump(mode="json")
        if found.shown.get(task_id) != row:
            yield f"{task_id} is shown as {found.shown.get(task_id)}, and is {row}"
    for task_id, upload in ledger.accepted.items():
        seen, now = upload.last_seen, found.shown.get(task_id)
        if seen and now and any(seen[name] != now[name] for name in ("status", "result")):
            yield f"{task_id}'s stream ended with {seen}, and it is {now}"


def failures_have_their_dead_letters(found: Evidence, _: Ledger) -> Iterator[str]:
    """A failed unit's record lies where it says, for people and for a replay."""
    for task_id, units in found.units.items():
        for unit in units:
            position = (unit["dead_letter_topic"], unit["dead_letter_partition"], unit["dead_letter_offset"])
            key = found.dead_letters.get(position) or b""
            if unit["state"] == "failed" and not key.startswith(str(task_id).encode()):
                yield f"{task_id} has no dead letter at {position} of its failed unit {unit['step']} {unit['shard']}"


LAWS: tuple[Law, ...] = (
    ends_as_it_should,
    nobody_else_is_there,
    all_are_over,
    chunks_are_those_of_the_newest,
    blobs_and_rows_belong_together,
    units_and_events_tell_the_same,
    counters_are_the_sums_of_units,
    what_is_shown_is_the_row,
    failures_have_their_dead_letters,
)


def unit_of(event: TaskEvent) -> Unit:
    """Return the unit that an event reports on."""
    match event:
        case DocumentPlanned():
            return Step.PLAN, 0, 0, 0
        case ShardExtracted():
            return Step.PARSE, event.shard, 0, 0
        case PartEmbedded():
            return Step.EMBED, event.shard, event.part, 0
        case PartIndexed():
            return Step.INDEX, event.shard, event.part, 0
        case UnitFailed() | UnitRetryScheduled():
            return event.step or Step(event.stage.value), event.shard, event.part, event.run


def duplicates(found: Evidence, tasks: set[UUID]) -> int:
    """Return how often work was done that was done already."""
    units = Counter((task, unit_of(e)) for task in tasks for e in found.events.get(task, ()) if _done(e))
    return sum(times - 1 for times in units.values())


def _done(event: TaskEvent) -> bool:
    return not isinstance(event, UnitFailed | UnitRetryScheduled)


def _chunks_recorded(found: Evidence, task_id: UUID) -> frozenset[UUID]:
    """Return the chunks of the parts that are recorded as indexed."""
    parts = [u for u in found.units.get(task_id, ()) if u["step"] == Step.INDEX and u["state"] == "done"]
    return frozenset().union(*(found.extracted.get((task_id, u["shard"], u["part"]), ()) for u in parts))
