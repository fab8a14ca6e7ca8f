"""A client's connection, which never holds more of what was sent than a few states, and none for ever.

Linux buffers up to 4 MiB for a client that reads slowly: thousands of states that are stale when they are read, while
the hub's slot holds the newest one. And a connection that is closed stays open until its client has read what is
buffered, which a frozen one never does.
"""

import asyncio
import socket

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SEND_BUFFER = 32 * 1024
"""Bytes that the kernel takes for a client beyond what is on its way: some 50 states. Linux doubles it."""


class Connection(HttpToolsProtocol):
    """A connection that is cut when its client has taken nothing for `send_timeout`, which the app's state tells."""

    _frozen: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._frozen = self.loop.call_later(self.app_state["send_timeout"].total_seconds(), self.transport.abort)

    @override
    def resume_writing(self) -> None:
        self._no_longer_frozen()
        super().resume_writing()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_frozen()
        super().connection_lost(exc)

    def _no_longer_frozen(self) -> None:
        if self._frozen is not None:
            self._frozen.cancel()
            self._frozen = None
