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

import asyncpg

from services.tracker.fold import Ended, Unit, UnitState, apply, await_retry, settle, step_of, unit_of
from shared.clock import Clock, now
from shared.database.durations import Observation, count_durations, task_durations
from shared.database.pool import Connection, Pool, acquire
from shared.events import PartIndexed, Step, TaskEvent, UnitFailed, UnitRetryScheduled
from shared.tasks import TaskRow, TaskStatus

LOCK = "SELECT * FROM tasks WHERE task_id = ANY($1) ORDER BY task_id FOR UPDATE"

# A unit that failed may still succeed, by another owner or after a replay; never the other way round. Of two owners
# whose unit failed the one that failed first counts, whichever event arrives first. And what an earlier run of a
# replayed unit reports late is no news.
INSERT_UNITS = """
    INSERT INTO task_units (task_id, step, shard, part, state, run, started_at, finished_at, parts,
                            dead_letter_topic, dead_letter_partition, dead_letter_offset)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::text[], $6::int[], $7::timestamptz[],
                         $8::timestamptz[], $9::int[], $10::text[], $11::int[], $12::bigint[])
    ON CONFLICT (task_id, step, shard, part) DO UPDATE
        SET state = excluded.state, run = excluded.run, started_at = excluded.started_at,
            finished_at = excluded.finished_at, parts = excluded.parts, dead_letter_topic = excluded.dead_letter_topic,
            dead_letter_partition = excluded.dead_letter_partition, dead_letter_offset = excluded.dead_letter_offset
        WHERE task_units.state <> 'done' AND (
            excluded.state = 'done' OR excluded.run > task_units.run
            OR (excluded.run = task_units.run
                AND (task_units.state = 'open' OR excluded.finished_at < task_units.finished_at))
        )
    RETURNING task_id, step, shard, part
"""

INSERT_RETRIES = """
    INSERT INTO task_retries (task_id, step, shard, part, run, attempt, attempts, parts, code, message, failed_at,
                              retry_at)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::int[], $6::int[], $7::int[], $8::int[],
                         $9::text[], $10::text[], $11::timestamptz[], $12::timestamptz[])
    ON CONFLICT DO NOTHING
    RETURNING task_id, step, shard, part, run, attempt
"""

# Of each task the retry that is due next: a unit's last one, unless the unit has ended since.
NEXT_RETRIES = """
    SELECT DISTINCT ON (r.task_id) r.* FROM task_retries r
    LEFT JOIN task_units u ON (u.task_id, u.step, u.shard, u.part) = (r.task_id, r.step, r.shard, r.part)
    WHERE r.task_id = ANY($1) AND (u.task_id IS NULL OR (u.state = 'open' AND u.run = r.run)) AND NOT EXISTS (
        SELECT FROM task_retries later
        WHERE (later.task_id, later.step, later.shard, later.part) = (r.task_id, r.step, r.shard, r.part)
            AND (later.run, later.attempt) > (r.run, r.attempt)
    )
    ORDER BY r.task_id, r.retry_at, r.step, r.shard, r.part
"""

FIXED = frozenset(
    {"task_id", "owner", "task_type", "document_id", "filename", "size", "sha256", "blob_url"}
    | {"created_at", "replays", "redispatched_at", "alerted_at"}
)
"""Columns that the fold never changes."""

FOLDED = tuple(name for name in TaskRow.__dataclass_fields__ if name not in FIXED)

UPDATE = f"""
    UPDATE tasks SET {", ".join(f"{name} = n.{name}" for name in FOLDED)}
    FROM jsonb_populate_recordset(NULL::tasks, $1) AS n WHERE tasks.task_id = n.task_id
"""  # noqa: S608  the names are those of our own dataclass

# Of documents with a completed or failed task among those given, and with other tasks beside it: the newest completed
# task. That may be another one than was given, if an older task ends after a newer one.
NEWEST_COMPLETED = """
    SELECT DISTINCT ON (newest.document_id) newest.* FROM tasks given
    JOIN tasks newest ON newest.document_id = given.document_id AND newest.status = 'completed'
    WHERE given.task_id = ANY($1) AND given.status IN ('completed', 'failed') AND EXISTS (
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
        The newest completed tasks of documents of which a task in the batch is completed or failed, and which have more
        tasks than that one: what older versions left in the index may go.
    ended
        Those that this batch brought to their end.
    canceled
        Those of which a part was indexed after they were canceled: it must go, too.
    """

    tasks: Sequence[TaskRow]
    superseding: Sequence[TaskRow]
    ended: Sequence[TaskRow]
    canceled: Sequence[TaskRow]


class TaskStore:
    """Folds events into the tables `tasks`, `task_units` and `task_retries`."""

    def __init__(self, pool: Pool, clock: Clock = now) -> None:
        self._pool = pool
        self._clock = clock

    async def fold(self, events: Sequence[TaskEvent]) -> Folded:
        """Fold a batch of events.

        Those of unknown tasks, which clean-up has deleted, and of canceled ones are ignored.

        Raises
        ------
        DependencyUnavailableError
            The database is away; nothing was changed.
        """
        async with acquire(self._pool) as connection, connection.transaction():
            records = await connection.fetch(LOCK, list({event.task_id for event in events}))
            tasks = {record["task_id"]: TaskRow(**record) for record in records}
            canceled = {task_id for task_id, task in tasks.items() if task.status == TaskStatus.CANCELED}
            live = [event for event in events if event.task_id in tasks.keys() - canceled]
            fresh = await self._uncounted(connection, [e for e in live if not isinstance(e, UnitRetryScheduled)])
            fresh += await self._uncounted_retries(connection, [e for e in live if isinstance(e, UnitRetryScheduled)])
            changed = _apply_all(tasks, fresh, self._clock())
            ended = [task for task in changed if settle(task)]
            await await_retries(connection, changed)
            repeated = {event.task_id for event in live} - {event.task_id for event in fresh}
            await write_tasks(connection, [*changed, *_on_their_way([tasks[i] for i in repeated], self._clock())])
            newest = await superseding(connection, tasks.values())
            await count_durations(connection, chain(_unit_durations(fresh), task_durations(ended)))
        late = canceled & {event.task_id for event in events if isinstance(event, PartIndexed)}
        return Folded(list(tasks.values()), newest, ended, [tasks[task_id] for task_id in late])

    async def _uncounted(self, connection: Connection, events: Sequence[Ended]) -> list[TaskEvent]:
        """Record the units of `events` and return those events that were not counted before."""
        latest: dict[Key, tuple[Unit, Ended]] = {}
        for event in events:
            unit = unit_of(event)
            key = (event.task_id, unit.step, unit.shard, unit.part)
            if key not in latest or _prevails(unit, latest[key][0]):
                latest[key] = (unit, event)
        if not latest:
            return []
        rows = [(*key, *_unit_columns(unit)) for key, (unit, _) in latest.items()]
        inserted = await connection.fetch(INSERT_UNITS, *map(list, zip(*rows, strict=True)))
        return [latest[tuple(record)][1] for record in inserted]

    async def _uncounted_retries(self, connection: Connection, events: Sequence[UnitRetryScheduled]) -> list[TaskEvent]:
        """Record retries and return those that were not counted before."""
        by_key = {(e.task_id, step_of(e).value, e.shard, e.part, e.run, e.attempt): e for e in events}
        if not by_key:
            return []
        rows = [
            (*key, e.attempts, e.parts, clean(e.code), clean(e.message), e.failed_at, e.retry_at)
            for key, e in by_key.items()
        ]
        inserted = await connection.fetch(INSERT_RETRIES, *map(list, zip(*rows, strict=True)))
        return [by_key[tuple(record)] for record in inserted]


async def await_retries(connection: Connection, tasks: Iterable[TaskRow]) -> None:
    """Note of each task which retry is due next."""
    retried = [task for task in tasks if task.retry_count]
    if not retried:
        return
    records = await connection.fetch(NEXT_RETRIES, [task.task_id for task in retried])
    retries = {record["task_id"]: _retry(record) for record in records}
    for task in retried:
        await_retry(task, retries.get(task.task_id))


async def superseding(connection: Connection, tasks: Iterable[TaskRow]) -> list[TaskRow]:
    """Return the newest completed tasks of the documents of `tasks` that ended, where there are others beside them."""
    ended = [task.task_id for task in tasks if task.status in (TaskStatus.COMPLETED, TaskStatus.FAILED)]
    records = await connection.fetch(NEWEST_COMPLETED, ended) if ended else []
    return [TaskRow(**record) for record in records]


async def write_tasks(connection: Connection, tasks: Iterable[TaskRow]) -> None:
    """Write what a fold may change of rows that this transaction has locked."""
    await connection.execute(UPDATE, [clean(dict(_columns(task))) for task in tasks])


def _prevails(unit: Unit, known: Unit) -> bool:
    """Tell whether a report on a unit counts although another one on the same unit did; as in `INSERT_UNITS`."""
    if UnitState.DONE in (unit.state, known.state):
        return known.state != UnitState.DONE
    return unit.run > known.run or (unit.run == known.run and unit.finished_at < known.finished_at)


def _unit_columns(unit: Unit) -> tuple[object, ...]:
    """Return a unit's columns in the order of `INSERT_UNITS`, after its key."""
    dead = unit.dead_letter
    position = (clean(dead.topic), dead.partition, dead.offset) if dead else (None, None, None)
    return (unit.state, unit.run, unit.started_at, unit.finished_at, unit.parts, *position)


def _retry(record: asyncpg.Record) -> UnitRetryScheduled:
    return UnitRetryScheduled(**record, stage=Step(record["step"]).stage)


def _apply_all(tasks: dict[UUID, TaskRow], events: Iterable[TaskEvent], at: datetime) -> list[TaskRow]:
    """Apply events to their tasks and return the tasks that changed.

    Even by a clock that was put back, a task moves after what is known of it, or the watchdog would take it for silent.
    """
    by_task: defaultdict[UUID, list[TaskEvent]] = defaultdict(list)
    for event in events:
        by_task[event.task_id].append(event)
    for task_id, its_events in by_task.items():
        task = tasks[task_id]
        for event in its_events:
            apply(task, event)
        task.version += 1
        task.updated_at = max(at, task.updated_at, task.redispatched_at or at)
    return [tasks[task_id] for task_id in by_task]


def _on_their_way(tasks: Iterable[TaskRow], at: datetime) -> Iterable[TaskRow]:
    """Note and yield the tasks for which work is sent on once more, reported by what is no news.

    The rows do not move by it; but the watchdog must know that the work may have to wait.
    """
    for task in tasks:
        if not task.final and task.dispatched_at is not None:
            task.dispatched_at = at
            yield task


def clean(value: object) -> object:
    """Return a value as PostgreSQL takes it in JSON: its text cannot hold U+0000, which text from elsewhere may."""
    match value:
        case datetime():
            return value.isoformat()
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        case dict():
            return {clean(name): clean(content) for name, content in value.items()}
        case _:
            return value


def _columns(task: TaskRow) -> Iterable[tuple[str, object]]:
    yield "task_id", str(task.task_id)
    for name in FOLDED:
        yield name, getattr(task, name)


def _unit_durations(events: Iterable[TaskEvent]) -> Iterable[Observation]:
    for event in events:
        if not isinstance(event, UnitRetryScheduled | UnitFailed):
            unit = unit_of(event)
            if unit.started_at is not None:
                yield Observation("stage", unit.step, unit.finished_at - unit.started_at)
