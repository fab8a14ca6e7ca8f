"""Unit tests reach no network: one that opens a socket, or asks for a name, fails, even if it hides the error."""

import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None)  # a shared machine may stop for longer than an example takes
settings.load_profile("unit")

_LOOKUPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})


class _Guard:
    """An audit hook, which cannot be taken out again and so has a switch. It sees what C code opens, too."""

    def __init__(self) -> None:
        self.armed = False
        self.seen: list[str] = []
        self._others: set[int] = set()

    def arm(self) -> None:
        """Watch this thread and those that it starts, but none that is at work already, for another folder's tests."""
        self.seen.clear()
        self._others = {thread.ident for thread in threading.enumerate() if thread.ident} - {threading.get_ident()}
        self.armed = True

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.armed or threading.get_ident() in self._others:
            return
        if event in _LOOKUPS or (event == "socket.__new__" and not _is_local(args[1])):
            self.seen.append(f"{event}{args[1:] if event == 'socket.__new__' else args}")
            raise RuntimeError(f"unit tests reach no network, but this one asked for {self.seen[-1]}")


def _is_local(family: object) -> bool:
    """Event loops wake themselves, and child processes are reached, through Unix sockets."""
    return family == getattr(socket, "AF_UNIX", None)


_GUARD = _Guard()
sys.addaudithook(_GUARD)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    _GUARD.arm()
    yield
    _GUARD.armed = False
    assert not _GUARD.seen, "unit tests reach no network"
