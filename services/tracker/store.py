"""The fold in PostgreSQL: one transaction a batch of events.

The rows of a batch's tasks are locked in one order, so two trackers never wait for each other in a circle. A unit that
is inserted was not counted before; everything else is a duplicate. The counters of durations are written last, for
all trackers share their rows.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from uuid import UUID

from services.tracker.fold import Unit, apply, settle, unit_of
from shared.clock import Clock, now
from shared.database.durations import Observation, count_durations
from shared.database.pool import Connection, Pool, acquire
from shared.events import TaskEvent
from shared.tasks import TaskRow, TaskStatus

LOCK = "SELECT * FROM tasks WHERE task_id = ANY($1) ORDER BY task_id FOR UPDATE"

# A unit that failed may still succeed, by another owner or after a replay; never the other way round. And of two
# owners whose unit failed the one that failed first counts, whichever event arrives first.
INSERT_UNITS = """
    INSERT INTO task_units (task_id, stage, shard, part, done, started_at, finished_at)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::bool[], $6::timestamptz[], $7::timestamptz[])
    ON CONFLICT (task_id, stage, shard, part) DO UPDATE
        SET done = excluded.done, started_at = excluded.started_at, finished_at = excluded.finished_at
        WHERE NOT task_units.done AND (excluded.done OR excluded.finished_at < task_units.finished_at)
    RETURNING task_id, stage, shard, part
"""

FIXED = frozenset(
    {"task_id", "owner", "task_type", "document_id", "filename", "size", "sha256", "blob_url"}
    | {"created_at", "dispatched_at"}
)
"""Columns that the fold never changes."""

FOLDED = tuple(name for name in TaskRow.__dataclass_fields__ if name not in FIXED)

UPDATE = f"""
    UPDATE tasks SET {", ".join(f"{name} = n.{name}" for name in FOLDED)}
    FROM jsonb_populate_recordset(NULL::tasks, $1) AS n WHERE tasks.task_id = n.task_id
"""  # noqa: S608  the names are those of our own dataclass

# Of documents with a completed task among those given, and with other tasks beside it: the newest completed task.
# That may be another one than was given, if an older task ends after a newer one.
NEWEST_COMPLETED = """
    SELECT DISTINCT ON (newest.document_id) newest.* FROM tasks given
    JOIN tasks newest ON newest.document_id = given.document_id AND newest.status = 'completed'
    WHERE given.task_id = ANY($1) AND given.status = 'completed' AND EXISTS (
        SELECT FROM tasks other WHERE other.document_id = given.document_id AND other.task_id <> given.task_id
    )
    ORDER BY newest.document_id, newest.created_at DESC
"""

Key = tuple[UUID, str, int, int]


@dataclass(frozen=True)
class Folded:
    """What a batch of events did.

    Attributes
    ----------
    tasks
        The new state of every task that the batch names, changed or not: an earlier run of the same batch may have
        been committed without its updates having been published.
    superseding
        The newest completed tasks of documents that have a completed task in the batch and more tasks than that one:
        what older versions left in the index may go.
    ended
        Those that this batch brought to their end.
    """

    tasks: Sequence[TaskRow]
    superseding: Sequence[TaskRow]
    ended: Sequence[TaskRow]


class TaskStore:
    """Folds events into the tables `tasks` and `task_units`."""

    def __init__(self, pool: Pool, clock: Clock = now) -> None:
        self._pool = pool
        self._clock = clock

    async def fold(self, events: Sequence[TaskEvent]) -> Folded:
        """Fold a batch of events; those of unknown tasks, which clean-up has deleted, are ignored.

        Raises
        ------
        DependencyUnavailableError
            The database is away; nothing was changed.
        """
        async with acquire(self._pool) as connection, connection.transaction():
            records = await connection.fetch(LOCK, list({event.task_id for event in events}))
            tasks = {record["task_id"]: TaskRow(**record) for record in records}
            fresh = await self._uncounted(connection, [e for e in events if e.task_id in tasks])
            ended = _apply_all(tasks, fresh, self._clock())
            changed = {event.task_id for event in fresh}
            await connection.execute(UPDATE, [_jsonable(dict(_columns(tasks[task_id]))) for task_id in changed])
            superseding = await self._superseding(connection, tasks.values())
            await count_durations(connection, chain(_unit_durations(fresh), _task_durations(ended)))
        return Folded(list(tasks.values()), superseding, ended)

    async def _uncounted(self, connection: Connection, events: Sequence[TaskEvent]) -> list[TaskEvent]:
        """Record the units of `events` and return those events that were not counted before."""
        latest: dict[Key, tuple[Unit, TaskEvent]] = {}
        for event in events:
            unit = unit_of(event)
            key = (event.task_id, unit.stage, unit.shard, unit.part)
            if key not in latest or _prevails(unit, latest[key][0]):
                latest[key] = (unit, event)
        if not latest:
            return []
        units = [unit for unit, _ in latest.values()]
        inserted = await connection.fetch(
            INSERT_UNITS,
            *map(list, zip(*latest, strict=True)),
            [unit.done for unit in units],
            [unit.started_at for unit in units],
            [unit.finished_at for unit in units],
        )
        return [latest[tuple(record)][1] for record in inserted]

    async def _superseding(self, connection: Connection, tasks: Iterable[TaskRow]) -> list[TaskRow]:
        complete = [task.task_id for task in tasks if task.status == TaskStatus.COMPLETED]
        records = await connection.fetch(NEWEST_COMPLETED, complete) if complete else []
        return [TaskRow(**record) for record in records]


def _prevails(unit: Unit, known: Unit) -> bool:
    """Tell whether a report on a unit counts although another one on the same unit did; as in `INSERT_UNITS`."""
    return not known.done and (unit.done or unit.finished_at < known.finished_at)


def _apply_all(tasks: dict[UUID, TaskRow], events: Iterable[TaskEvent], at: datetime) -> list[TaskRow]:
    """Apply events to their tasks and return the tasks that ended by it."""
    by_task: defaultdict[UUID, list[TaskEvent]] = defaultdict(list)
    for event in events:
        by_task[event.task_id].append(event)
    for task_id, its_events in by_task.items():
        for event in its_events:
            apply(tasks[task_id], event)
        tasks[task_id].version += 1
        tasks[task_id].updated_at = at
    return [tasks[task_id] for task_id in by_task if settle(tasks[task_id])]


def _jsonable(value: object) -> object:
    """Return a value as JSON that PostgreSQL takes: its text cannot hold U+0000, which JSON from elsewhere may."""
    match value:
        case datetime():
            return value.isoformat()
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        case dict():
            return {_jsonable(name): _jsonable(content) for name, content in value.items()}
        case _:
            return value


def _columns(task: TaskRow) -> Iterable[tuple[str, object]]:
    yield "task_id", str(task.task_id)
    for name in FOLDED:
        yield name, getattr(task, name)


def _unit_durations(events: Iterable[TaskEvent]) -> Iterable[Observation]:
    for unit in map(unit_of, events):
        if unit.done and unit.started_at is not None:
            yield Observation("stage", unit.stage, unit.finished_at - unit.started_at)


def _task_durations(tasks: Iterable[TaskRow]) -> Iterable[Observation]:
    for task in tasks:
        if task.completed_at is not None:
            yield Observation("task", f"{task.task_type}/{task.status}", task.completed_at - task.created_at)
