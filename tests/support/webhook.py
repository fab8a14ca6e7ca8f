"""A real HTTP server that takes alerts as JSON, and fails in its ways on demand."""

import asyncio
import json
import re
from contextlib import suppress
from datetime import timedelta
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from tests.support.eventually import before_long

SECRET = "s3cr3t-t0ken"
"""Part of the server's URL, as many services have it; nobody may log it."""

READ_TIMEOUT = timedelta(seconds=20)
"""A busy machine may keep an answer waiting for longer than the library's 4 seconds."""


class Mode(Enum):
    """What the server does with a message."""

    TAKE = auto()
    HOLD = auto()
    REFUSE = auto()
    HANG = auto()
    TRICKLE = auto()


class Webhook:
    """The server, in the event loop of the test, from `async with` to its end.

    Attributes
    ----------
    mode
        What it does with the messages that come from now on.
    released
        Lets it answer to messages that it took in hand and holds.
    """

    def __init__(self) -> None:
        self.mode = Mode.TAKE
        self.released = asyncio.Event()
        self._taken: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tries: asyncio.Queue[Mode] = asyncio.Queue()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> SecretStr:
        """What ALERT_URLS has of it."""
        return self.url_with(READ_TIMEOUT)

    def url_with(self, read_timeout: timedelta) -> SecretStr:
        """Return a URL with which the library waits for so long for an answer."""
        seconds = read_timeout.total_seconds()
        return SecretStr(f"json://user:{SECRET}@127.0.0.1:{self._port}/{SECRET}?rto={seconds}")

    async def open(self) -> None:
        """Listen, after the first time on the same port again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, and cut all connections."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await server.wait_closed()

    async def message(self) -> dict[str, Any]:
        """Wait for the next message that it takes."""
        return await before_long(self._taken.get())

    async def tried(self, mode: Mode) -> None:
        """Wait until a message has come that it does this with."""
        while await before_long(self._tries.get()) is not mode:
            pass

    def taken_nothing_more(self) -> bool:
        """Tell whether every message has been looked at."""
        return self._taken.empty()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(json.loads(await _body(reader)), writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        mode = self.mode
        self._tries.put_nowait(mode)
        match mode:
            case Mode.TAKE | Mode.HOLD:
                self._taken.put_nowait(message)
                if mode is Mode.HOLD:
                    await self.released.wait()
                writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            case Mode.REFUSE:
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            case Mode.HANG:
                await asyncio.Event().wait()
            case Mode.TRICKLE:  # what no timeout of a single read notices
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    writer.write(b"X-Patience: please\r\n")
                    await writer.drain()
                    await asyncio.sleep(1)
        await writer.drain()


async def _body(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None
    return await reader.readexactly(int(length[1]))
