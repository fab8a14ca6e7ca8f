import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from shared import deadline
from shared.deadline import Deadline, off_the_clock, supervise
from shared.errors import DeadlineExceededError, EncryptedPdfError, TransientError
from tests.support.builders import patience

LONG = timedelta(minutes=5)
SHORT = timedelta(milliseconds=20)


def never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def at_once() -> str:
    return "done"


class Hanging:
    """Work that hangs until it is cancelled, and then ends as it is told."""

    def __init__(self, cleanup: asyncio.Event | None = None, end: Exception | str | None = None) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.cleaned_up = asyncio.Event()
        self._cleanup = cleanup
        self._end = end

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            if self._cleanup:
                await self._cleanup.wait()
            self.cleaned_up.set()
            match self._end:
                case Exception() as error:
                    raise error from None
                case str() as result:
                    return result
                case None:
                    raise
        return "never"


async def test_work_in_time_returns_what_it_returns() -> None:
    assert await supervise(at_once(), LONG, never()) == "done"


async def test_work_in_time_raises_what_it_raises() -> None:
    async def fail() -> None:
        raise EncryptedPdfError("no")

    with pytest.raises(EncryptedPdfError, match="no"):
        await supervise(fail(), LONG, never())


async def test_work_that_takes_too_long_is_cancelled_and_says_so() -> None:
    work = Hanging()
    async with patience():
        with pytest.raises(DeadlineExceededError, match=r"longer than 0\.02 s"):
            await supervise(work(), SHORT, never())
    assert work.cleaned_up.is_set()


async def test_nothing_goes_on_before_the_work_has_cleaned_up() -> None:
    may_end = asyncio.Event()
    work = Hanging(may_end)
    supervision = asyncio.create_task(supervise(work(), SHORT, never()))
    async with patience():
        await work.cancelled.wait()
        assert not supervision.done()
        may_end.set()
        with pytest.raises(DeadlineExceededError):
            await supervision
    assert work.cleaned_up.is_set()


async def test_an_error_of_the_clean_up_counts_as_the_missed_deadline_that_led_to_it() -> None:
    async with patience():
        with pytest.raises(DeadlineExceededError):
            await supervise(Hanging(end=OSError("connection closed"))(), SHORT, never())


async def test_what_work_brings_to_an_end_all_the_same_counts() -> None:
    async with patience():
        assert await supervise(Hanging(end="just made it")(), SHORT, never()) == "just made it"


@pytest.mark.parametrize("reason", ["time", "unwanted"])
async def test_work_that_ignores_its_cancellation_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(deadline, "CLEANUP_TIMEOUT", SHORT)
    release, unwanted = asyncio.Event(), never()
    work = Hanging(release)
    supervision = asyncio.create_task(supervise(work(), SHORT if reason == "time" else LONG, unwanted))
    async with patience():
        await work.begun.wait()
        with capture_logs() as lines:
            if reason == "time":
                with pytest.raises(DeadlineExceededError):
                    await supervision
            else:
                unwanted.set_result(None)
                assert await supervision is None
        assert [(line["log_level"], line["event"]) for line in lines] == [
            ("error", "work ignores its cancellation and is left to itself")
        ]
        assert not work.cleaned_up.is_set()
        release.set()
        await work.cleaned_up.wait()


async def test_work_that_nobody_wants_any_more_is_cancelled() -> None:
    work, unwanted = Hanging(), never()
    supervision = asyncio.create_task(supervise(work(), LONG, unwanted))
    async with patience():
        await work.begun.wait()
        unwanted.set_result(None)
        assert await supervision is None
    assert work.cleaned_up.is_set()


async def test_a_stop_of_the_service_cancels_the_work_and_passes_on() -> None:
    may_end = asyncio.Event()
    work = Hanging(may_end)
    supervision = asyncio.create_task(supervise(work(), LONG, never()))
    async with patience():
        await work.begun.wait()
        supervision.cancel()
        await work.cancelled.wait()
        assert not supervision.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await supervision
    assert work.cleaned_up.is_set()


async def test_work_that_cancels_itself_is_a_failure_and_no_stop() -> None:
    async def cancel() -> None:
        raise asyncio.CancelledError

    with pytest.raises(TransientError, match="cancelled by a part of itself"):
        await supervise(cancel(), LONG, never())


async def test_the_clock_stands_still_while_work_waits_for_its_turn() -> None:
    turn, limit = asyncio.Event(), timedelta(seconds=0.2)
    waiting = asyncio.Event()

    async def wait_first() -> str:
        with off_the_clock():
            waiting.set()
            await turn.wait()
        return "done"

    supervision = asyncio.create_task(supervise(wait_first(), limit, never()))
    async with patience():
        await waiting.wait()
        control = Deadline(limit)  # starts later, so that the other one would have passed before it
        await control.passed
        turn.set()
        assert await supervision == "done"


async def test_the_clock_goes_on_after_the_wait() -> None:
    async def wait_and_hang() -> None:
        with off_the_clock():
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    async with patience():
        with pytest.raises(DeadlineExceededError):
            await supervise(wait_and_hang(), SHORT, never())


async def test_what_is_left_of_the_time_is_kept_over_a_wait() -> None:
    clock, order = Deadline(timedelta(milliseconds=60)), list[str]()
    clock.passed.add_done_callback(lambda _: order.append("half of it was left"))
    async with patience():
        await Deadline(timedelta(milliseconds=30)).passed
        with clock.suspended():
            await Deadline(timedelta(milliseconds=60)).passed
            assert not clock.passed.done()
        anew = Deadline(timedelta(milliseconds=60))
        anew.passed.add_done_callback(lambda _: order.append("all of it"))
        await asyncio.gather(clock.passed, anew.passed)
    assert order == ["half of it was left", "all of it"]


async def test_work_without_a_deadline_may_wait_as_well() -> None:
    with off_the_clock():
        pass
