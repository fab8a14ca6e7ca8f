"""A client of the API: what the commands and the demo speak through, and a model for your own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import httpx
from httpx_sse import aconnect_sse

TIMEOUT = httpx.Timeout(timedelta(seconds=30).total_seconds(), read=timedelta(seconds=60).total_seconds())
"""A stream sends a heartbeat every 15 s, so a minute without a byte means that the connection is dead."""

RECONNECT_PAUSE = timedelta(seconds=1)
"""Between two attempts to take a broken stream up again."""

Answer = dict[str, Any]


class ApiError(Exception):
    """The service refused a request, or could not be reached; the text says why.

    Parameters
    ----------
    code
        The service's own code for it; None where it was not the service that answered.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Speaks to one gateway.

    Parameters
    ----------
    url
        Where it is, such as http://localhost:8000.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def upload(self, path: Path) -> str:
        """Upload a PDF and return the id of its task.

        Raises
        ------
        ApiError
            It is refused, or cannot be read.
        """
        try:
            with path.open("rb") as file:
                answer = await self._request("POST", "/upload", files={"file": (path.name, file)})
        except OSError as error:
            raise ApiError(f"cannot read {path}: {error.strerror}") from error
        return str(answer["task_id"])

    async def stream(self, task_id: str) -> AsyncIterator[Answer]:
        """Yield the states of a task until it is over; the last one has the key `result`.

        A connection that breaks is taken up again where it broke.

        Raises
        ------
        ApiError
            There is no such task.
        """
        seen = ""
        while True:
            with suppress(httpx.TransportError):
                async for name, number, state in self._events(task_id, seen):
                    seen = number or seen
                    yield state
                    if name == "complete":
                        return
            await asyncio.sleep(RECONNECT_PAUSE.total_seconds())  # a stream that was closed in order comes here, too

    async def _events(self, task_id: str, seen: str) -> AsyncIterator[tuple[str, str, Answer]]:
        headers = {"Last-Event-ID": seen} if seen else {}
        async with aconnect_sse(self._http, "GET", f"/tasks/{task_id}/stream", headers=headers) as source:
            if source.response.is_error:
                await source.response.aread()
                raise _refusal(source.response)
            async for event in source.aiter_sse():
                if event.data:  # a heartbeat comes out as an event without data
                    yield event.event, event.id, event.json()

    async def search(self, query: str, limit: int) -> list[Answer]:
        """Return the hits for a query, best first."""
        hits: list[Answer] = (await self._request("GET", "/search", params={"q": query, "limit": limit}))["hits"]
        return hits

    async def tasks(self, params: Mapping[str, str | int]) -> Answer:
        """Return a page of tasks, with the total."""
        return await self._request("GET", "/tasks", params=params)

    async def task(self, task_id: UUID) -> Answer:
        """Return a task."""
        return await self._request("GET", f"/tasks/{task_id}")

    async def cancel(self, task_id: UUID) -> Answer:
        """Cancel a task, and return it."""
        return await self._request("POST", f"/tasks/{task_id}/cancel")

    async def replay(self, task_id: UUID) -> Answer:
        """Have the failed parts of a task run again, and return it."""
        return await self._request("POST", f"/tasks/{task_id}/replay")

    async def _request(self, method: str, path: str, **options: Any) -> Answer:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ApiError(f"no answer from {self._url}: is `paperlane up` running? ({error!r})") from error
        if response.is_error:
            raise _refusal(response)
        answer: Answer = response.json()
        return answer


def _refusal(response: httpx.Response) -> ApiError:
    try:
        detail, code = response.json()["detail"], response.json()["code"]
    except (ValueError, KeyError, TypeError):
        return ApiError(f"{response.url} answered {response.status_code} {response.reason_phrase}")
    return ApiError(f"{detail} ({code})", code)
