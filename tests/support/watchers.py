"""Clients of event streams on plain sockets: quick ones, cheap enough for hundreds, and some that take little."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from urllib.parse import urlsplit
from uuid import UUID

from tests.support.api import Json

LONGEST_LINE = 1024 * 1024
"""Bytes; beyond any state that a test sends."""

SMALL = 4096
"""Bytes of a receive buffer, about the least that Linux gives, so that what is not read waits at the server."""


class Watcher:
    """A quick client: reads all there is at once.

    Attributes
    ----------
    last
        The newest state.
    end
        What came with the end.
    lags
        Seconds from when a state was written to when it was here, where its message tells the former.
    """

    def __init__(self, task_id: UUID) -> None:
        self.last: Json = {}
        self.end: Json | None = None
        self.lags: list[float] = []
        self._task_id = task_id

    @property
    def version(self) -> int:
        """Of the newest state; 0 before the first."""
        version: int = self.last.get("version", 0)
        return version

    async def run(self, url: str) -> None:
        """Watch until the server ends the stream."""
        reader, writer = await asyncio.open_connection(*_address(url), limit=LONGEST_LINE)
        try:
            writer.write(_request(self._task_id))
            event = b""
            async for line in reader:
                name, _, value = line.strip().partition(b": ")
                if name == b"event":
                    event = value
                elif name == b"data":
                    self._take(event, json.loads(value))
        finally:
            writer.close()

    def _take(self, event: bytes, data: Json) -> None:
        if event == b"complete":
            self.end = data
            return
        assert data["version"] > self.version, "a stream only goes forward"
        self.last = data
        if (written := _written_at(data["message"])) is not None:
            self.lags.append(perf_counter() - written)


class Sluggard:
    """A client that takes what it is told to take, and nothing by itself.

    Attributes
    ----------
    taken
        All that it has read.
    """

    def __init__(self, task_id: UUID) -> None:
        self.taken = b""
        self._task_id = task_id
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        self._socket.setblocking(False)

    @property
    def port(self) -> int:
        """Its end of the connection."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def states(self) -> Sequence[Json]:
        """The states among what it has read, as far as they are whole."""
        lines = self.taken.split(b"\n")[:-1]
        return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]

    async def connect(self, url: str) -> None:
        """Ask for the stream."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, _address(url))
        await loop.sock_sendall(self._socket, _request(self._task_id))

    async def take(self, most: int) -> int:
        """Read up to so many bytes once there are any, and return how many; 0 at the end."""
        data = await asyncio.get_running_loop().sock_recv(self._socket, most)
        self.taken += data
        return len(data)

    def close(self) -> None:
        """Go away, whatever there is left to read."""
        self._socket.close()


@asynccontextmanager
async def watching(url: str, watchers: Sequence[Watcher]) -> AsyncIterator[None]:
    """Have clients watch while the context is open; where one fails, it ends."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(watcher.run(url)) for watcher in watchers]
        yield
        for task in running:
            task.cancel()


def written_now() -> str:
    """Return the beginning of a message, which tells when it was written."""
    return f"{perf_counter()} "


def _written_at(message: str) -> float | None:
    try:
        return float(message.split(maxsplit=1)[0])
    except ValueError:
        return None


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


def _request(task_id: UUID) -> bytes:
    return f"GET /tasks/{task_id}/stream HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode()
