"""Fans task updates out to the clients that watch, newest state first and nothing else.

Every client has one slot, which holds the newest frame that it has not been sent. A slow client skips states rather
than queueing them, so memory is bounded by the number of clients. An update is encoded once, however many watch.

Updates can get lost: before this gateway's consumer has its position, and when a tracker dies between its commit and
its publish. So the tasks being watched are read again from PostgreSQL every `RESYNC_INTERVAL`; this also keeps streams
alive, if less lively, while Kafka is away.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog
from prometheus_client import Gauge
from pydantic import ValidationError

from services.gateway.tasks import Tasks
from shared.broker import Record
from shared.events import TaskUpdated
from shared.tasks import FINAL, update_of

STATE = {"task_id", "version", "status", "progress", "message", "retry_count", "next_retry_at", "stages"}
"""What a client is told on every change."""

RESYNC_INTERVAL = timedelta(seconds=5)
"""The longest that a lost update stays unseen; one indexed query for all watched tasks together."""

CLIENTS = Gauge("paperlane_sse_clients", "Clients that watch a task on this gateway.")

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Frame:
    """A task's state as it goes to clients: one or two SSE messages, encoded."""

    version: int
    final: bool
    payload: bytes


class Slot:
    """What one client has yet to be sent: at most the newest frame."""

    __slots__ = ("_arrived", "_frame", "_version")

    def __init__(self, after: int) -> None:
        self._version = after
        self._frame: Frame | None = None
        self._arrived = asyncio.Event()

    def offer(self, frame: Frame) -> None:
        """Put a frame in, in place of an older one; one that is not newer than what was seen is ignored."""
        if frame.version > self._version:
            self._version = frame.version
            self._frame = frame
            self._arrived.set()

    async def take(self) -> Frame:
        """Wait for a frame that the client has not seen, and take it out."""
        while self._frame is None:
            self._arrived.clear()
            await self._arrived.wait()
        frame, self._frame = self._frame, None
        return frame


class Hub:
    """Knows who watches what, and brings them the updates."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._slots: defaultdict[UUID, set[Slot]] = defaultdict(set)

    @contextmanager
    def watch(self, task_id: UUID, after: int = 0) -> Iterator[Slot]:
        """Lend a slot that receives the task's frames with a version above `after`."""
        slot = Slot(after)
        self._slots[task_id].add(slot)
        CLIENTS.inc()
        try:
            yield slot
        finally:
            CLIENTS.dec()
            self._slots[task_id].discard(slot)
            if not self._slots[task_id]:
                del self._slots[task_id]

    async def __call__(self, records: tuple[Record, ...]) -> None:
        """Take a batch of `task.updates`; of several updates of one task the last one counts."""
        latest = {record.key: record for record in records}
        for record in latest.values():
            try:
                watched = UUID((record.key or b"").decode()) in self._slots
                if watched:
                    self.deliver(TaskUpdated.model_validate_json(record.value or b""))
            except (ValueError, ValidationError) as error:
                logger.warning("update ignored", partition=record.partition, offset=record.offset, error=str(error))

    def deliver(self, update: TaskUpdated) -> None:
        """Put an update into the slots of those who watch its task."""
        slots = self._slots.get(update.task_id)
        if slots:
            frame = encode(update)
            for slot in slots:
                slot.offer(frame)

    async def resync(self) -> None:
        """Read the watched tasks again, for whoever missed an update."""
        if self._slots:
            for row in await self._tasks.get_many(list(self._slots)):
                self.deliver(update_of(row))


def encode(update: TaskUpdated) -> Frame:
    """Encode an update for clients.

    The last state is followed by the event `complete`, and it is that event which carries the id: whoever lost the
    connection in between gets it when coming back.
    """
    state = update.model_dump_json(include=STATE)
    if update.status not in FINAL:
        return Frame(update.version, final=False, payload=f"id: {update.version}\ndata: {state}\n\n".encode())
    end = update.model_dump_json(include={"task_id", "version", "status", "result", "error"})
    payload = f"data: {state}\n\nid: {update.version}\nevent: complete\ndata: {end}\n\n"
    return Frame(update.version, final=True, payload=payload.encode())
