"""The soft limit of a unit of work, and what becomes of work that must not go on."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import structlog

from shared.errors import DeadlineExceededError, TransientError

UNIT_TIMEOUT = timedelta(seconds=270)
"""The soft limit of a unit by default. Real units take seconds; it stays below the hard limit of 300 s by the time that
a clean-up may take."""

CLEANUP_TIMEOUT = timedelta(seconds=30)
"""For work that was stopped to clean up: what lies between the soft limit and the hard one."""

T = TypeVar("T")

logger = structlog.stdlib.get_logger()


class Deadline:
    """When a unit has been at work for too long.

    Attributes
    ----------
    passed
        Done as soon as it has.
    """

    def __init__(self, limit: timedelta) -> None:
        self._loop = asyncio.get_running_loop()
        self.passed: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._start(limit.total_seconds())

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the clock."""
        left = self._timer.when() - self._loop.time()
        self._timer.cancel()
        try:
            yield
        finally:
            self._timer = self._start(left)

    def lift(self) -> None:
        """Stop the clock for good."""
        self._timer.cancel()

    def _start(self, seconds: float) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, self._pass)

    def _pass(self) -> None:
        if not self.passed.done():
            self.passed.set_result(None)


_deadline: ContextVar[Deadline] = ContextVar("deadline")


@contextmanager
def off_the_clock() -> Iterator[None]:
    """Stop the clock of the unit that runs here, if one does, while it waits for its turn.

    Those ahead of it have limits of their own, so that the wait has an end; and nobody fails for another's slowness.
    """
    deadline = _deadline.get(None)
    with deadline.suspended() if deadline else nullcontext():
        yield


async def supervise(work: Coroutine[Any, Any, T], limit: timedelta, unwanted: asyncio.Future[None]) -> T | None:
    """Do work until it is done, its time is over or nobody wants it any more; then it is cancelled, and may clean up.

    Work that ignores its cancellation is left to itself after `CLEANUP_TIMEOUT`. Others must not wait for it without
    end, and what it may still do is what a second owner of the same record does, which everything downstream bears.

    Parameters
    ----------
    limit
        How long it may take, without the time that it spends `off_the_clock`.
    unwanted
        Done as soon as nobody wants the work any more.

    Returns
    -------
    T or None
        What the work returned, also when it did so in spite of its cancellation; None where nobody wants it.

    Raises
    ------
    DeadlineExceededError
        The time was over.
    TransientError
        The work was cancelled, but not from here.
    CancelledError
        This call itself was cancelled, as it is when the service stops.
    """
    deadline = Deadline(limit)
    _deadline.set(deadline)
    task = asyncio.create_task(work)
    task.add_done_callback(_look_at_the_error)
    ends: set[asyncio.Future[Any]] = {task, deadline.passed, unwanted}
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        in_time = task.done()
    finally:
        deadline.lift()
        await _stop(task)
    if unwanted.done():
        return None
    if in_time and task.cancelled():
        raise TransientError("the work was cancelled by a part of itself")
    if in_time or (task.done() and not task.cancelled() and not task.exception()):
        return task.result()
    raise DeadlineExceededError(f"The work took longer than {limit.total_seconds():g} s.")


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task unless it is done, and wait until it has cleaned up."""
    if task.done():
        return
    task.cancel()
    _, deaf = await asyncio.wait({task}, timeout=CLEANUP_TIMEOUT.total_seconds())
    if deaf:
        logger.error("work ignores its cancellation and is left to itself", work=str(task.get_coro()))


def _look_at_the_error(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from warning of an error that nobody is interested in any more."""
    if not task.cancelled():
        task.exception()
