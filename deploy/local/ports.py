"""Free ports on 127.0.0.1."""

import errno
import secrets
import socket
from collections.abc import Collection, Sequence

from deploy.local.errors import LocalStackError

CANDIDATES = range(20_000, 32_000)
"""Above the well-known servers, below the range from which Linux takes the ports of outgoing connections."""


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do; TIME_WAIT does not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def pick(count: int, taken: Collection[int] = ()) -> Sequence[int]:
    """Return free ports, none of which is among the taken ones."""
    shuffled = secrets.SystemRandom().sample(CANDIDATES, len(CANDIDATES))
    free = (port for port in shuffled if port not in taken and is_free(port))
    return [next(free) for _ in range(count)]


def require(port: int, user: str) -> None:
    """Raise a clear error if a port is in use or may not be used."""
    if not 1 <= port <= 65_535:
        raise LocalStackError(f"port {port} for the {user} does not exist: choose --port between 1 and 65000")
    if not is_free(port):
        raise LocalStackError(f"port {port} for the {user} is in use: choose another with --port, or stop its owner")
