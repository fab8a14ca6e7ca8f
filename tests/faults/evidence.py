"""All that can be found of all tasks, in PostgreSQL, the blob store, Kafka and the API, read once all is quiet."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
from pydantic import ValidationError

from shared.broker import Record
from shared.database.pool import Pool, acquire
from shared.events import TASK_EVENT, ChunksExtracted, TaskEvent, chunk_id
from shared.tasks import TaskRow
from shared.topics import CHUNKS_EXTRACTED, TASK_EVENTS, TOPICS
from tests.support.api import Json
from tests.support.kafka_log import read_topics

PAGE = 1000
"""Tasks of one page of the list."""

Part = tuple[UUID, int, int]
"""Task, shard, part."""

Position = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True)
class Whereabouts:
    """Where everything of a stack is.

    Attributes
    ----------
    kafka
        Its broker, host:port.
    blobs
        The folder of its blob store.
    gateway
        URL of its API.
    """

    kafka: str
    blobs: Path
    gateway: str


@dataclass(frozen=True)
class Evidence:
    """What there is.

    Attributes
    ----------
    units, retries
        Rows of each task.
    chunks
        Ids of the chunks that each task has in the index.
    extracted
        Ids of the chunks of each part that left the parser.
    blobs
        URLs of all files in the blob store.
    events
        What was reported of each task, in no special order.
    dead_letters
        Keys of the records in the dead-letter topics.
    shown
        Tasks as the API shows them.
    """

    tasks: Mapping[UUID, TaskRow]
    units: Mapping[UUID, Sequence[asyncpg.Record]]
    retries: Mapping[UUID, Sequence[asyncpg.Record]]
    chunks: Mapping[UUID, Sequence[UUID]]
    extracted: Mapping[Part, frozenset[UUID]]
    blobs: frozenset[str]
    events: Mapping[UUID, Sequence[TaskEvent]]
    dead_letters: Mapping[Position, bytes | None]
    shown: Mapping[UUID, Json]


async def gather(where: Whereabouts, pool: Pool) -> Evidence:
    """Gather all evidence of a stack that is at rest."""
    tasks = await read_tasks(pool)
    async with acquire(pool) as connection:
        units = _by_task(await connection.fetch("SELECT * FROM task_units"))
        retries = _by_task(await connection.fetch("SELECT * FROM task_retries"))
        chunks = _by_task(await connection.fetch("SELECT task_id, chunk_id FROM chunks"))
    dead = [topic.dead_letters for topic in TOPICS if topic.group]
    log = await read_topics(where.kafka, [CHUNKS_EXTRACTED.name, TASK_EVENTS.name, *dead])
    return Evidence(
        tasks=tasks,
        units=units,
        retries=retries,
        chunks={task_id: [row["chunk_id"] for row in rows] for task_id, rows in chunks.items()},
        extracted=_extracted(log[CHUNKS_EXTRACTED.name], tasks),
        blobs=await asyncio.to_thread(_files, where.blobs),
        events=_reported(log[TASK_EVENTS.name]),
        dead_letters={(r.topic, r.partition, r.offset): r.key for r in chain(*(log[topic] for topic in dead))},
        shown=await _shown(where.gateway),
    )


async def read_tasks(pool: Pool) -> dict[UUID, TaskRow]:
    """Return all tasks."""
    async with acquire(pool) as connection:
        return {row["task_id"]: TaskRow(**row) for row in await connection.fetch("SELECT * FROM tasks")}


def _by_task(rows: Iterable[asyncpg.Record]) -> dict[UUID, list[asyncpg.Record]]:
    found: defaultdict[UUID, list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        found[row["task_id"]].append(row)
    return dict(found)


def _extracted(records: Iterable[Record], tasks: Mapping[UUID, TaskRow]) -> dict[Part, frozenset[UUID]]:
    found: defaultdict[Part, frozenset[UUID]] = defaultdict(frozenset)
    for record in records:
        try:
            part = ChunksExtracted.model_validate_json(record.value or b"")
        except ValidationError:  # a scenario's garbage, which is a dead letter
            continue
        if (task := tasks.get(part.task_id)) is not None and task.model is not None:
            ids = (chunk_id(part.task_id, task.model, part.shard, part.part, chunk.n) for chunk in part.chunks)
            found[part.task_id, part.shard, part.part] |= frozenset(ids)
    return dict(found)


def _reported(records: Iterable[Record]) -> dict[UUID, list[TaskEvent]]:
    found: defaultdict[UUID, list[TaskEvent]] = defaultdict(list)
    for record in records:
        try:
            event = TASK_EVENT.validate_json(record.value or b"")
        except ValidationError:  # a scenario's garbage, which is a dead letter
            continue
        found[event.task_id].append(event)
    return dict(found)


def _files(folder: Path) -> frozenset[str]:
    return frozenset(path.as_uri() for path in folder.rglob("*") if path.is_file())


async def _shown(gateway: str) -> dict[UUID, Json]:
    shown: dict[UUID, Json] = {}
    async with httpx.AsyncClient(base_url=gateway, timeout=60) as client:
        for page in count():
            answer = (await client.get("/tasks", params={"skip": page * PAGE, "limit": PAGE})).raise_for_status().json()
            shown |= {UUID(task["task_id"]): task for task in answer["tasks"]}
            if len(answer["tasks"]) < PAGE:
                break
    return shown
