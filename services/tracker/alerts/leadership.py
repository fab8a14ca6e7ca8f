"""One of several trackers leads: the one that holds an advisory lock in PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import asyncpg

from shared.database.pool import ACQUIRE_TIMEOUT, COMMAND_TIMEOUT, UNAVAILABLE
from shared.errors import DependencyUnavailableError
from shared.settings import DatabaseSettings

LOCK = 7_265_812
"""Key of the advisory lock; any number that nobody else uses in this database."""

CLOSE_TIMEOUT = timedelta(seconds=2)
"""For a goodbye to the server, which gives the lock to another tracker at once; a stop must not wait for longer."""

# A machine that vanished says no goodbye: its lock is free after a minute, not after the two hours of most systems.
KEEPALIVE = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}


class Leadership:
    """Holds the lock for as long as its connection lives, which is one of its own.

    Two processes may believe that they lead, for as long as one has not noticed that its connection is gone. The one
    that is wrong cannot write through it.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._url = settings.database_url
        self._connection: asyncpg.Connection | None = None
        self.held = False

    @asynccontextmanager
    async def claim(self) -> AsyncIterator[asyncpg.Connection | None]:
        """Lend the connection that holds the lock, or None while another process holds it.

        Raises
        ------
        DependencyUnavailableError
            The database is away, and with it the lock.
        """
        try:
            yield await self._claim()
        except UNAVAILABLE as error:
            await self.aclose()
            raise DependencyUnavailableError(
                f"the database does not answer: {str(error) or type(error).__name__}"
            ) from error

    async def aclose(self) -> None:
        """Give the lock back."""
        connection, self._connection, self.held = self._connection, None, False
        if connection is not None:
            with suppress(*UNAVAILABLE):
                await connection.close(timeout=CLOSE_TIMEOUT.total_seconds())

    async def _claim(self) -> asyncpg.Connection | None:
        if self._connection is None:
            self._connection = await asyncpg.connect(
                self._url.get_secret_value(),
                timeout=ACQUIRE_TIMEOUT.total_seconds(),
                command_timeout=COMMAND_TIMEOUT.total_seconds(),
                server_settings=KEEPALIVE,
            )
        if not self.held:
            self.held = await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK)
        return self._connection if self.held else None
