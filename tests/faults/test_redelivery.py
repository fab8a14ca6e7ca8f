"""Every record comes twice and in another order, and nothing changes by it."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaProducer
from pydantic import SecretStr, ValidationError

from deploy.local import StackOptions
from services.gateway.tasks import Tasks
from shared.broker import Record
from shared.database.pool import Pool, open_pool
from shared.events import Event
from shared.settings import DatabaseSettings
from shared.tasks import TaskRow, TaskStatus
from shared.topics import TASK_EVENTS, TASK_UPDATES, TOPICS
from tests.faults.documents import mixed
from tests.faults.evidence import Evidence, gather, read_tasks
from tests.faults.laws import duplicates
from tests.faults.trial import Trial
from tests.support.eventually import eventually
from tests.support.kafka_log import lags, read_topics
from tests.support.stack_thread import StackThread

DOCUMENTS = 16

UPLOADED = ("task_id", "owner", "filename", "size", "sha256", "document_id", "blob_url", "created_at")
"""Columns of a task that was just uploaded."""

NOT_BY_EVENTS = {"version", "updated_at", "dispatched_at", "alerted_at"}
"""Columns that tell how many batches the events came in, or what others did."""


async def test_records_that_come_twice_and_shuffled_change_nothing(trial: Trial) -> None:
    documents = mixed(trial.choice)
    uploads = await trial.load.upload([next(documents) for _ in range(DOCUMENTS)])
    await trial.verdict("records before they come again", faults=0)
    ours = {upload.task_id for upload in uploads if upload.task_id is not None}
    before = await gather(trial.where, trial.pool)
    work = [topic.name for topic in TOPICS if topic is not TASK_UPDATES]
    log = await read_topics(trial.where.kafka, work)
    again = [record for records in log.values() for record in records if _task_of(record) in ours]

    await _produce(trial.where.kafka, trial.choice.sample(again * 2, len(again) * 2))

    await trial.verdict("every record twice more, shuffled", faults=len(again) * 2)
    after = await gather(trial.where, trial.pool)
    assert _state(after, ours) == _state(before, ours)


async def test_a_fresh_database_comes_to_the_same_rows_by_shuffled_doubled_events(trial: Trial, tmp_path: Path) -> None:
    found = await gather(trial.where, trial.pool)
    tasks = {task_id: task for task_id, task in found.tasks.items() if task.status != TaskStatus.CANCELED}
    [events] = (await read_topics(trial.where.kafka, [TASK_EVENTS.name])).values()
    options = StackOptions(data=tmp_path / "stack", port=0, services=("tracker",))
    with StackThread(options) as fresh:
        kafka = fresh.stack.environment["KAFKA_BOOTSTRAP_SERVERS"]
        async with _database(fresh.stack.environment["DATABASE_URL"]) as pool:
            for task in tasks.values():
                await Tasks(pool).insert(_as_uploaded(task))
            await _produce(kafka, trial.choice.sample(events * 2, len(events) * 2))
            await eventually(lambda: _folded(kafka), trial.scale.patience)
            there = await read_tasks(pool)
    assert there.keys() == tasks.keys()
    for task_id, task in tasks.items():
        done_once = duplicates(found, {task_id}) == 0
        assert _columns(there[task_id], exact=done_once) == _columns(task, exact=done_once)


def _task_of(record: Record) -> UUID | None:
    try:
        return Event.model_validate_json(record.value or b"").task_id
    except ValidationError:
        return None


async def _produce(kafka: str, records: Collection[Record]) -> None:
    """Write records once more as they were."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    try:
        for record in records:
            await producer.send(record.topic, record.value, key=record.key, headers=list(record.headers))
        await producer.flush()
    finally:
        await producer.stop()


def _state(found: Evidence, tasks: Collection[UUID]) -> dict[UUID, Any]:
    """Return all that is kept of tasks, but for when people were told."""
    return {
        task_id: (
            {name: value for name, value in asdict(found.tasks[task_id]).items() if name != "alerted_at"},
            sorted(map(str, found.units.get(task_id, ()))),
            sorted(map(str, found.retries.get(task_id, ()))),
            sorted(found.chunks.get(task_id, ())),
        )
        for task_id in tasks
    }


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(DatabaseSettings(database_url=SecretStr(url)))
    try:
        yield pool
    finally:
        await pool.close()


def _as_uploaded(task: TaskRow) -> TaskRow:
    fields = {name: getattr(task, name) for name in UPLOADED}
    return TaskRow(**fields, updated_at=task.created_at, dispatched_at=task.created_at)


def _columns(task: TaskRow, *, exact: bool) -> dict[str, object]:
    """Return the columns that follow from events.

    Where work was done twice, it took another time and another share of a call's tokens; which of both counts depends
    on the order.
    """
    return {
        name: value
        for name, value in asdict(task).items()
        if name not in NOT_BY_EVENTS and (exact or not (isinstance(value, datetime) or name == "tokens"))
    }


async def _folded(kafka: str) -> None:
    left = {partition: lag for partition, lag in (await lags(kafka)).items() if partition.topic == TASK_EVENTS.name}
    assert not left, f"not folded: {left}"
