"""The event stream of one task for one client."""

import re
from collections.abc import AsyncIterator
from uuid import UUID

from services.gateway.hub import Hub, encode
from services.gateway.tasks import Tasks
from shared.tasks import TaskRow, update_of

_VERSION = re.compile("[0-9]{1,18}")  # what PostgreSQL's bigint surely holds, and int() converts at once


def resume_after(task: TaskRow, last_event_id: str | None) -> int:
    """Return the version that a client has seen already; 0 where what it says makes no sense."""
    seen = int(last_event_id) if last_event_id and _VERSION.fullmatch(last_event_id) else 0
    return seen if seen <= task.version else 0


async def frames(hub: Hub, tasks: Tasks, owner: str, task_id: UUID, after: int) -> AsyncIterator[bytes]:
    """Yield a task's states as SSE messages until it is over, those after version `after`.

    Watching begins before the snapshot is read, so that no update falls between the two; versions drop what then
    comes twice.
    """
    with hub.watch(task_id, after) as slot:
        snapshot = await tasks.get(owner, task_id)
        if snapshot is None:  # deleted meanwhile
            return
        slot.offer(encode(update_of(snapshot)))
        while True:
            frame = await slot.take()
            yield frame.payload
            if frame.final:
                return
