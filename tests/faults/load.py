"""Clients that upload, follow and cancel, and that go on whatever dies."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx
from httpx_sse import SSEError

from shared.tasks import TaskStatus
from tests.faults.documents import Document, mixed
from tests.faults.ledger import Answer, Ledger, Upload
from tests.support.api import events

ANSWER_PATIENCE = timedelta(seconds=60)
"""A gateway answers at the latest when a statement to a frozen database is given up, after 30 s."""

PAUSE = timedelta(seconds=0.3)
"""Before a client that was refused or cut off comes back."""

THINK_TIME = (0.1, 0.9)
"""Seconds between two uploads of one client, at least and at most."""

CANCEL_AFTER = (0.0, 1.5)
"""Seconds from an upload to its cancellation: some tasks are still waiting then, some at work, some over."""

FOLLOWED = 0.4
"""The share of tasks whose event stream is followed."""


class Load:
    """A context in which clients upload a seeded mix of documents to several gateways.

    Parameters
    ----------
    gateways
        Where they answer.
    ledger
        Where all is written down.
    choice
        Decides everything that is left to chance.
    name
        What the names of the files begin with.
    canceled
        The share of tasks that are canceled, of those that come in while it runs.
    """

    def __init__(
        self, gateways: Sequence[str], ledger: Ledger, choice: random.Random, name: str, *, canceled: float = 0
    ) -> None:
        self._ledger = ledger
        self._choice = choice
        self._name = name
        self._canceled = canceled
        self._numbers = count()
        self._documents = mixed(choice)
        self._watchers: set[asyncio.Task[None]] = set()
        self._exit = AsyncExitStack()
        self._clients = [
            httpx.AsyncClient(
                base_url=url,
                timeout=ANSWER_PATIENCE.total_seconds(),
                limits=httpx.Limits(max_keepalive_connections=0),  # a kept one may close while a request is on its way
            )
            for url in gateways
        ]

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await self._exit.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._exit.aclose()

    @asynccontextmanager
    async def running(self, clients: int = 3) -> AsyncIterator[None]:
        """Upload again and again while the context is open; at the end wait for the last answers."""
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._upload_until(over))
            try:
                yield
            finally:
                over.set()

    async def upload(self, documents: Iterable[Document], name: str = "") -> list[Upload]:
        """Upload these documents at the same time, each until it is accepted."""
        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(self._until_accepted(document, name)) for document in documents]
        return [upload.result() for upload in sent]

    async def cancel(self, upload: Upload) -> None:
        """Cancel a task; where the answer is lost, both ends are right."""
        while True:
            try:
                response = await self._choice.choice(self._clients).post(f"/tasks/{upload.task_id}/cancel")
            except httpx.ConnectError:
                response = None
            except httpx.TransportError:
                upload.ends |= {TaskStatus.CANCELED}
                response = None
            match response and response.status_code:
                case httpx.codes.OK | httpx.codes.ACCEPTED:
                    upload.ends = frozenset({TaskStatus.CANCELED})
                    return
                case httpx.codes.CONFLICT:
                    return
                case None:
                    pass
                case httpx.codes.SERVICE_UNAVAILABLE:
                    upload.ends |= {TaskStatus.CANCELED}
                case status:
                    self._ledger.violations.append(f"to cancel {upload.task_id} was answered {status}")
                    return
            await asyncio.sleep(PAUSE.total_seconds())

    async def watched_to_the_end(self, within: timedelta) -> None:
        """Wait until all followers have seen the end of their tasks, which must have come."""
        if self._watchers:
            await asyncio.wait(self._watchers, timeout=within.total_seconds())
        for watcher in self._watchers:
            if not watcher.done():
                self._ledger.violations.append(f"{watcher.get_name()} hears nothing of the end")
            elif error := watcher.exception():
                raise error

    async def _upload_until(self, over: asyncio.Event) -> None:
        for document in self._documents:
            upload = await self._until_accepted(document, "", over)
            if upload.task_id is not None and self._choice.random() < self._canceled:
                self._watch(self._cancel_later(upload), "canceler", upload)
            if await _set_within(over, self._choice.uniform(*THINK_TIME)):
                return

    async def _until_accepted(self, document: Document, name: str, over: asyncio.Event | None = None) -> Upload:
        while True:
            upload = await self._attempt(document, name)
            if upload.answer is Answer.ACCEPTED or (over is not None and over.is_set()):
                return upload
            await asyncio.sleep(PAUSE.total_seconds())

    async def _attempt(self, document: Document, name: str) -> Upload:
        """Upload once, under a name of its own."""
        filename = f"{self._name}-{next(self._numbers)}{name}.pdf"
        upload = Upload(filename, document.kind, frozenset({document.end}), document.error)
        self._ledger.uploads.append(upload)
        try:
            client = self._choice.choice(self._clients)
            response = await client.post("/upload", files={"file": (upload.name, document.content)})
        except httpx.ConnectError:
            upload.answer = Answer.UNREACHED
        except httpx.TransportError:
            upload.answer = Answer.UNKNOWN
        else:
            self._note(upload, response)
        return upload

    def _note(self, upload: Upload, response: httpx.Response) -> None:
        if response.status_code == httpx.codes.ACCEPTED:
            upload.answer, upload.task_id = Answer.ACCEPTED, UUID(response.json()["task_id"])
            if self._choice.random() < FOLLOWED:
                self._watch(self._follow(upload), "follower", upload)
        else:
            upload.answer = Answer.REFUSED
            if response.status_code == httpx.codes.SERVICE_UNAVAILABLE and "Retry-After" in response.headers:
                return
            self._ledger.violations.append(f"{upload.name} was answered {response.status_code} {response.text}")

    def _watch(self, work: "asyncio._CoroutineLike[None]", who: str, upload: Upload) -> None:
        self._watchers.add(asyncio.create_task(work, name=f"{who} of {upload.task_id} ({upload.name})"))

    async def _cancel_later(self, upload: Upload) -> None:
        await asyncio.sleep(self._choice.uniform(*CANCEL_AFTER))
        await self.cancel(upload)

    async def _follow(self, upload: Upload) -> None:
        """Follow a task to its end, on another gateway after each break."""
        version, progress = 0, 0
        while True:
            client = self._choice.choice(self._clients)
            try:
                async for event in events(client, str(upload.task_id), last_event_id=str(version) if version else None):
                    if event.name == "complete":  # comes after the last state, with its version
                        upload.last_seen = event.data
                        return
                    if event.data["version"] <= version or event.data["progress"] < progress:
                        self._ledger.violations.append(f"the stream of {upload.task_id} goes back: {event}")
                    version, progress = event.data["version"], event.data["progress"]
            except (httpx.TransportError, SSEError):
                pass
            await asyncio.sleep(PAUSE.total_seconds())


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
