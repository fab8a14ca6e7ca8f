import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from shared.periodic import periodically
from tests.support.builders import patience

AT_ONCE = timedelta(0)
NEVER_AGAIN = timedelta(days=1)


class Work:
    """Counts how often it is done; fails where told, hangs while `gate` is shut."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.done = asyncio.Semaphore(0)
        self.times = 0
        self.cancelled = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> None:
        self.times += 1
        self.done.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.failures and (error := self.failures.pop(0)):
            raise error

    async def was_done(self, times: int) -> None:
        async with patience():
            for _ in range(times):
                await self.done.acquire()


def others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def test_work_is_done_at_once_and_again_and_again() -> None:
    work = Work()
    async with periodically(AT_ONCE, work):
        await work.was_done(5)


async def test_work_waits_for_its_interval() -> None:
    first, other = Work(), Work()
    async with periodically(NEVER_AGAIN, first), periodically(AT_ONCE, other):
        await other.was_done(20)
    assert first.times == 1


async def test_work_never_overlaps_itself() -> None:
    work = Work()
    work.gate.clear()
    async with periodically(AT_ONCE, work):
        await work.was_done(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert work.times == 1


async def test_a_failure_is_logged_and_the_next_time_comes() -> None:
    work = Work(ConnectionError("no database"), None, ValueError("a bug"))
    with capture_logs() as lines:
        async with periodically(AT_ONCE, work):
            await work.was_done(4)
    assert [(line["event"], line["error"]) for line in lines] == [
        ("background work failed", "no database"),
        ("background work failed", "a bug"),
    ]


async def test_work_under_way_is_cancelled_at_the_end_and_waited_for() -> None:
    work = Work()
    work.gate.clear()
    async with periodically(AT_ONCE, work):
        await work.was_done(1)
    assert work.cancelled
    assert not others()


async def test_an_error_of_the_body_passes_and_leaves_nothing_behind() -> None:
    work = Work()
    with pytest.raises(ZeroDivisionError):
        async with periodically(AT_ONCE, work):
            _ = 1 / 0
    assert not others()
