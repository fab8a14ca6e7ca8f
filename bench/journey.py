"""One document's way through the stack, as a client sees it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cli.client import Answer, Client
from shared.clock import now

PATIENCE = timedelta(minutes=2)
"""The longest that a document may take before the run is given up: several times what a large one needs."""


class DocumentFailedError(Exception):
    """A document did not become searchable, so there is nothing to measure."""


@dataclass(frozen=True)
class Seen:
    """A server-sent event, and when the client had it."""

    at: datetime
    state: Answer


@dataclass
class Journey:
    """What the client did and saw.

    Attributes
    ----------
    posted, accepted
        Just before the upload's request, and when its answer was there.
    events
        From the first to `complete`.
    """

    task_id: str
    posted: datetime
    accepted: datetime
    events: list[Seen] = field(default_factory=list)

    @property
    def completed(self) -> datetime:
        """When the client had the event `complete`."""
        return self.events[-1].at

    @property
    def pages(self) -> int:
        """Pages of the document."""
        return int(self.events[-1].state["result"]["pages"])


async def travel(client: Client, path: Path, uploads: asyncio.Semaphore | None = None) -> Journey:
    """Upload a PDF and follow it to its end.

    Parameters
    ----------
    uploads
        Room for uploads; following takes none of it. Without it, there is no limit.

    Raises
    ------
    DocumentFailedError
        It was not completed.
    """
    async with uploads or asyncio.Semaphore():
        posted = now()
        journey = Journey(await client.upload(path), posted, now())
    async with asyncio.timeout(PATIENCE.total_seconds()):
        async for state in client.stream(journey.task_id):
            journey.events.append(Seen(now(), state))
    last = journey.events[-1].state
    if last["status"] != "completed":
        raise DocumentFailedError(f"{path.name} {last['status']}: {last['error']}")
    return journey


async def travel_together(client: Client, paths: Sequence[Path], at_once: int) -> list[Journey]:
    """Let documents travel at the same time, `at_once` of them being uploaded."""
    uploads = asyncio.Semaphore(at_once)
    return await asyncio.gather(*(travel(client, path, uploads) for path in paths))
