"""What the processes of a stack take: memory, descriptors and children."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from statistics import median

import psutil

from deploy.local import Component

LOOK_INTERVAL = timedelta(seconds=0.2)
"""Between two looks for children, of which each lives for a hundred units of work and more than a second."""


@dataclass(frozen=True)
class Footprint:
    """What one part of a stack takes.

    Attributes
    ----------
    memory
        Bytes resident of its own process, in MiB; of a server those of all its processes, what they share once.
    files
        Open descriptors of its own process.
    children
        MiB resident of each process that works for a service.
    """

    memory: float
    files: int
    children: tuple[float, ...]


def footprint(part: Component) -> Footprint:
    """Look at a part of a stack."""
    process = psutil.Process(part.pid)
    if part.name in {"kafka", "postgres"}:
        memory = sum(_share(one) for one in [process, *process.children(recursive=True)])
        return Footprint(memory, process.num_fds(), ())
    children = [child.memory_info().rss / 2**20 for child in _children(part)]
    return Footprint(process.memory_info().rss / 2**20, process.num_fds(), tuple(children))


@asynccontextmanager
async def children_seen(services: Sequence[Component]) -> AsyncIterator[set[psutil.Process]]:
    """Gather the children of services that live while the context is open, whenever they begin and end."""
    seen: set[psutil.Process] = set()

    async def look() -> None:
        while True:
            with suppress(psutil.NoSuchProcess):
                seen.update(child for service in services for child in _children(service))
            await asyncio.sleep(LOOK_INTERVAL.total_seconds())

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()


def slope(points: Iterable[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points, which no outlier moves (Theil and Sen)."""
    return median((y - before) / (x - earlier) for (earlier, before), (x, y) in combinations(points, 2))


def _children(service: Component) -> list[psutil.Process]:
    """Return those that a service's fork server has forked."""
    return [child for server in psutil.Process(service.pid).children() for child in server.children()]


def _share(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):  # a server's connections come and go
        share: float = process.memory_full_info().pss / 2**20
        return share
    return 0
