"""What the tests of the whole pipeline do again and again: upload, follow, look."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
from httpx_sse import aconnect_sse

from deploy.local import LocalStack

SAMPLES = Path(__file__).parents[1] / "data" / "samples"

PATIENCE = timedelta(seconds=90)
"""The longest that any one task of the tests may take on a slow and busy machine."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    id: str
    data: Json


async def upload(api: httpx.AsyncClient, content: bytes | Path, name: str | None = None) -> str:
    """Upload a PDF that must be accepted, and return its task's id."""
    body = await asyncio.to_thread(content.read_bytes) if isinstance(content, Path) else content
    filename = name or (content.name if isinstance(content, Path) else "document.pdf")
    response = await api.post("/upload", files={"file": (filename, body)})
    assert response.status_code == 202, response.text
    return str(UUID(response.json()["task_id"]))


async def events(api: httpx.AsyncClient, task_id: str, *, last_event_id: str | None = None) -> AsyncIterator[Event]:
    """Yield a task's events until the server closes the stream."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    async with aconnect_sse(api, "GET", f"/tasks/{task_id}/stream", headers=headers) as source:
        async for event in source.aiter_sse():
            if event.data:  # a heartbeat comes out as an event without data
                yield Event(event.event, event.id, event.json())


async def follow(api: httpx.AsyncClient, task_id: str) -> list[Event]:
    """Return all of a task's events, from now to its end."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        return [event async for event in events(api, task_id)]


async def process(api: httpx.AsyncClient, content: bytes | Path, name: str | None = None) -> Json:
    """Upload a PDF, wait for its end, and return its task."""
    task_id = await upload(api, content, name)
    last = (await follow(api, task_id))[-1]
    assert last.name == "complete"
    task: Json = (await api.get(f"/tasks/{task_id}")).json()
    return task


def problem(response: httpx.Response, status: int, code: str) -> Json:
    """Check that a response is a problem document, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    document: Json = response.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["title"]
    assert document["detail"]
    return document


async def chunks(stack: LocalStack, document_id: str) -> list[asyncpg.Record]:
    """Return the rows of a document in the index."""
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"])
    try:
        return list(await connection.fetch("SELECT * FROM chunks WHERE document_id = $1", document_id))
    finally:
        await connection.close()
