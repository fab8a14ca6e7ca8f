"""Background work that is done again and again for as long as a service lives."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog

logger = structlog.stdlib.get_logger()


@asynccontextmanager
async def periodically(interval: timedelta, work: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do `work` every `interval` while the context is open. A failure is logged, and the next time comes."""
    task = asyncio.create_task(_repeat(interval, work), name=getattr(work, "__qualname__", "periodic"))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _repeat(interval: timedelta, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  whatever it was, the next time may go better
            logger.warning("background work failed", work=getattr(work, "__qualname__", str(work)), error=str(error))
        await asyncio.sleep(interval.total_seconds())
