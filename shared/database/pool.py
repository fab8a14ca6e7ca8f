"""The connection pool, and what a failing database means to a caller."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from shared.errors import DependencyUnavailableError
from shared.settings import DatabaseSettings

COMMAND_TIMEOUT = timedelta(seconds=30)
"""The longest any statement may take: far above what ours need, far below a unit's soft deadline."""

ACQUIRE_TIMEOUT = timedelta(seconds=5)
"""The longest wait for a free connection; an HTTP client should hear of an overload rather than hang."""

UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # starting, stopping, or a statement canceled
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,  # deadlocks and serialization failures
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What asyncpg raises for reasons that pass: the server is away, starting, stopping, full, or chose a victim."""

Pool = asyncpg.Pool
Connection = asyncpg.pool.PoolConnectionProxy


async def open_pool(settings: DatabaseSettings) -> Pool:
    """Open a pool that connects on first use, so that a service also starts while the database is away."""
    return await asyncpg.create_pool(
        settings.database_url.get_secret_value(),
        min_size=0,
        max_size=settings.database_pool_size,
        command_timeout=COMMAND_TIMEOUT.total_seconds(),
        init=_prepare,
        reset=keep_session,
    )


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


async def keep_session(_: asyncpg.Connection) -> None:
    """Spare the round trip that resets a returned connection: nothing of ours outlives its transaction."""


class NoConnectionError(DependencyUnavailableError):
    """Nothing was asked of the database, so nothing was changed either."""


@asynccontextmanager
async def acquire(pool: Pool) -> AsyncIterator[Connection]:
    """Lend a connection.

    Raises
    ------
    NoConnectionError
        The database is away or has no connection to spare.
    DependencyUnavailableError
        The connection broke; what was under way may be done or not.
    """
    lost: type[DependencyUnavailableError] = NoConnectionError
    try:
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT.total_seconds()) as connection:
            lost = DependencyUnavailableError
            yield connection
    except UNAVAILABLE as error:
        raise lost(f"the database does not answer: {str(error) or type(error).__name__}") from error


async def ping(pool: Pool) -> bool:
    """Tell whether the database answers now."""
    try:
        async with acquire(pool) as connection:
            await connection.execute("SELECT 1")
    except DependencyUnavailableError:
        return False
    return True
