import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.batching import MicroBatcher
from shared.errors import NotAPdfError, PermanentError, TransientError


class Doubler:
    """Doubles numbers, remembers its calls, refuses 13 for good and 7 for now; `gate` holds calls back."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0
        self.most = 0
        self.started = asyncio.Semaphore(0)

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.release()
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if 13 in items:
            raise NotAPdfError("13 is refused")
        if 7 in items:
            raise TransientError("7 has to wait")
        return [2 * item for item in items]


async def outcome(batcher: MicroBatcher[int, int], items: Sequence[int]) -> list[int] | str:
    try:
        return await batcher.submit(items)
    except (PermanentError, TransientError) as error:
        return str(error)


async def test_callers_of_the_same_moment_share_a_call() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=10)
    results = await asyncio.gather(*(batcher.submit([n, n + 1]) for n in (0, 10, 20)))
    assert results == [[0, 2], [20, 22], [40, 42]]
    assert work.calls == [[0, 1, 10, 11, 20, 21]]


async def test_what_comes_during_a_call_gathers_for_the_next() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=10)
    work.gate.clear()
    first = asyncio.create_task(batcher.submit([1]))
    await work.started.acquire()
    others = [asyncio.create_task(batcher.submit([n])) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(first, *others) == [[2], [4], [6], [8]]
    assert work.calls == [[1], [2, 3, 4]]


async def test_a_call_has_at_most_so_many_items_and_costs_at_most_so_much() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=3, max_cost=10, cost=lambda item: item)
    assert await batcher.submit([1, 1, 1, 1, 8, 3, 50, 2]) == [2, 2, 2, 2, 16, 6, 100, 4]
    assert work.calls == [[1, 1, 1], [1, 8], [3], [50], [2]]


async def test_calls_run_side_by_side_up_to_the_limit() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=1, max_concurrency=3)
    work.gate.clear()
    everything = asyncio.create_task(batcher.submit([1, 2, 3, 4, 5]))
    for _ in range(3):
        await work.started.acquire()
    assert work.running == 3
    work.gate.set()
    assert await everything == [2, 4, 6, 8, 10]
    assert work.most == 3


async def test_a_refused_item_fails_its_caller_only() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=10)
    results = await asyncio.gather(*(outcome(batcher, items) for items in ([1, 2], [3, 13], [4])))
    assert results == [[2, 4], "13 is refused", [8]]
    assert work.calls == [[1, 2, 3, 13, 4], [1, 2], [3, 13], [4]]


async def test_a_refused_caller_alone_is_not_tried_again() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=1)
    assert await outcome(batcher, [13, 1, 2]) == "13 is refused"
    assert await batcher.submit([3]) == [6]
    assert work.calls == [[13], [3]]  # nor are the rest of its items


async def test_a_passing_error_goes_to_every_caller_of_the_call() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=10)
    results = await asyncio.gather(*(outcome(batcher, items) for items in ([1], [7])))
    assert results == ["7 has to wait"] * 2
    assert work.calls == [[1, 7]]


async def test_a_wrong_number_of_results_is_an_error_not_a_mix_up() -> None:
    async def loses_one(items: Sequence[int]) -> list[int]:
        return list(items)[1:]

    batcher = MicroBatcher(loses_one, max_items=10)
    results = await asyncio.gather(batcher.submit([1]), batcher.submit([2]), return_exceptions=True)
    assert [str(result) for result in results] == ["process returned 1 results for 2 items"] * 2


async def test_a_canceled_caller_takes_its_waiting_items_along_and_hurts_nobody() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=2)
    work.gate.clear()
    canceled = asyncio.create_task(batcher.submit([1, 2, 3, 4]))
    await work.started.acquire()
    other = asyncio.create_task(batcher.submit([5]))
    await asyncio.sleep(0)
    canceled.cancel()
    work.gate.set()
    assert await other == [10]
    assert work.calls == [[1, 2], [5]]
    with pytest.raises(asyncio.CancelledError):
        await canceled


async def test_closing_fails_who_waits_and_refuses_who_comes() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=1)
    work.gate.clear()
    running = asyncio.create_task(outcome(batcher, [1]))
    await work.started.acquire()
    waiting = asyncio.create_task(outcome(batcher, [2]))
    await asyncio.sleep(0)
    await batcher.aclose()
    assert {await running, await waiting, await outcome(batcher, [3])} == {
        "the batcher was closed before these items were done"
    }
    assert work.calls == [[1]]
    assert work.running == 0


async def test_closing_before_a_call_took_its_first_step_leaves_nobody_waiting() -> None:
    work = Doubler()
    batcher = MicroBatcher(work, max_items=1)
    caller = asyncio.create_task(outcome(batcher, [1]))
    while not batcher._running:  # noqa: ASYNC110 - what starts a call is one turn of the loop
        await asyncio.sleep(0)
    await batcher.aclose()
    assert await caller == "the batcher was closed before these items were done"


async def test_a_call_that_is_canceled_from_inside_leaves_nobody_waiting() -> None:
    async def gives_up(_items: Sequence[int]) -> list[int]:
        raise asyncio.CancelledError

    batcher = MicroBatcher(gives_up, max_items=1)
    with pytest.raises(TransientError):
        await batcher.submit([1])
    with pytest.raises(TransientError):
        await batcher.submit([1])


async def test_a_call_for_many_does_not_run_in_the_context_of_one() -> None:
    task: ContextVar[str] = ContextVar("task", default="nobody's")
    seen: list[str] = []

    async def process(items: Sequence[int]) -> Sequence[int]:
        seen.append(task.get())
        return items

    batcher = MicroBatcher(process, max_items=10)
    task.set("mine")
    await batcher.submit([1])
    assert seen == ["nobody's"]


async def test_no_items_need_no_call() -> None:
    work = Doubler()
    assert await MicroBatcher(work, max_items=1).submit([]) == []
    assert work.calls == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_items": 0}, "at least 1"),
        ({"max_items": 1, "max_concurrency": 0}, "at least 1"),
        ({"max_items": 1, "max_cost": 5}, "give both or neither"),
    ],
)
async def test_limits_that_make_no_sense_are_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MicroBatcher(Doubler(), max_items=limits["max_items"], max_cost=limits.get("max_cost"),
                     max_concurrency=limits.get("max_concurrency", 1))  # fmt: skip


callers = st.lists(st.lists(st.integers(0, 12).filter(lambda n: n != 7) | st.just(13), max_size=7), max_size=8)


@settings(deadline=None)  # a busy machine is no failure
@given(callers=callers, max_items=st.integers(1, 9), max_cost=st.integers(1, 30), concurrency=st.integers(1, 3))
async def test_whoever_shares_a_call_gets_what_they_would_get_alone(
    callers: list[list[int]], max_items: int, max_cost: int, concurrency: int
) -> None:
    work = Doubler()
    batcher = MicroBatcher(
        work, max_items=max_items, max_cost=max_cost, cost=lambda item: item, max_concurrency=concurrency
    )
    results = await asyncio.gather(*(outcome(batcher, items) for items in callers))
    assert results == ["13 is refused" if 13 in items else [2 * item for item in items] for items in callers]
    assert all(len(call) <= max_items and (sum(call) <= max_cost or len(call) == 1) for call in work.calls)
    assert work.most <= concurrency
