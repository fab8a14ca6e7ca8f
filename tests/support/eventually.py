"""Waiting for what another process does, where there is no event to await."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

PATIENCE = timedelta(seconds=20)
"""Far above anything that works, which takes milliseconds; below the time limit of one test."""

PAUSE = timedelta(milliseconds=10)
"""Between two looks: what is waited for costs at least a round trip to a server."""


async def eventually(check: Callable[[], Awaitable[T]], within: timedelta = PATIENCE) -> T:
    """Return what `check` returns once it no longer raises AssertionError.

    Raises
    ------
    AssertionError
        The last one, if `check` does not come true within the time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within.total_seconds()
    while True:
        try:
            return await check()
        except AssertionError:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(PAUSE.total_seconds())


async def before_long(happens: Awaitable[T], within: timedelta = PATIENCE) -> T:
    """Return what an awaitable gives, or raise TimeoutError where it takes too long."""
    return await asyncio.wait_for(happens, within.total_seconds())
