"""Cancels tasks and replays failed ones: decided in the task's row, told to everybody else afterwards."""

from services.gateway.outbox import Outbox
from services.gateway.problems import TaskConflictError
from services.gateway.tasks import Tasks
from shared.clock import Clock, now
from shared.kafka import Outgoing
from shared.tasks import TaskRow, canceled, update_of
from shared.topics import TASK_CONTROL, TASK_UPDATES


class Control:
    """Changes the course of tasks at their owner's wish.

    The row's lock decides between the owner and the tracker: whichever comes second sees what the first has done. The
    tracker's dispatcher publishes what this gateway cannot, and what a replay has to do again.
    """

    def __init__(self, tasks: Tasks, outbox: Outbox, clock: Clock = now) -> None:
        self._tasks = tasks
        self._outbox = outbox
        self._clock = clock

    async def cancel(self, task: TaskRow) -> TaskRow:
        """End a task now. What waits of it is dropped, and what was indexed of it is removed, soon after.

        Raises
        ------
        TaskConflictError
            It is over already.
        """
        row = await self._tasks.cancel(task.owner, task.task_id, self._clock())
        if row is None:
            status = await self._status(task)
            raise TaskConflictError(
                f"the task is {status} already; only one that is pending or running can be canceled"
            )
        key = str(row.task_id)
        records = [
            Outgoing.of(TASK_CONTROL.name, key, canceled(row)),
            Outgoing.of(TASK_UPDATES.name, key, update_of(row, self._clock)),
        ]
        self._outbox.publish_soon(row, records)
        return row

    async def replay(self, task: TaskRow) -> TaskRow:
        """Have the failed parts of a failed task run again; the others keep what they have done.

        Raises
        ------
        TaskConflictError
            It has not failed.
        """
        row = await self._tasks.reopen(task.owner, task.task_id, self._clock())
        if row is None:
            raise TaskConflictError(f"the task is {await self._status(task)}; only a failed one can be replayed")
        return row

    async def _status(self, task: TaskRow) -> str:
        current = await self._tasks.get(task.owner, task.task_id)
        return current.status if current else "deleted"
