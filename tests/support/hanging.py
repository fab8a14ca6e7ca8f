"""A file that hangs whoever reads it, and a look at the child processes that do."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import psutil

from services.parser.workers import Workers

DEATH = timedelta(seconds=5)
"""For a killed process to be gone."""


def hanging_file(path: Path) -> Path:
    """Make a file that hangs its reader in the operating system for ever."""
    os.mkfifo(path)
    return path


@asynccontextmanager
async def hung_reader(path: Path) -> AsyncIterator[None]:
    """Wait until a reader has opened the file, and keep it waiting until the end of the block."""
    descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY)
    try:
        yield
    finally:
        os.close(descriptor)


def children_of(workers: Workers) -> list[psutil.Process]:
    """Return the child processes of a pool."""
    return [psutil.Process(pid) for pid in workers._pool._pool_manager.worker_manager.workers]


async def ended(processes: list[psutil.Process]) -> bool:
    """Tell whether processes are gone, or are within the time that it takes."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, DEATH.total_seconds())
    return not alive
