"""Micro-batching: what callers ask for at the same time becomes one call.

There is no waiting time to choose. An idle batcher starts after one turn of the event loop; while a call runs,
whatever arrives gathers for the next one. So batches are small when little happens, and large under load.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Generic, TypeVar

from shared.errors import PermanentError, TransientError

T = TypeVar("T")
R = TypeVar("R")


class _Submission(Generic[T, R]):
    """What one caller waits for."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items = items
        self.future: asyncio.Future[list[R]] = asyncio.get_running_loop().create_future()
        self._results: dict[int, R] = {}

    def take(self, n: int, result: R) -> None:
        """Keep the result of item n, and answer the caller once all are there."""
        self._results[n] = result
        if len(self._results) == len(self.items) and not self.future.done():
            self.future.set_result([self._results[n] for n in range(len(self.items))])

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # a caller cancelled in this very moment never looks, which is no fault


class MicroBatcher(Generic[T, R]):
    """Joins the items of concurrent callers into calls of `process`.

    Parameters
    ----------
    process
        Takes items, returns one result for each, in their order.
    max_items
        The most items of one call.
    max_cost
        The highest cost of one call, in whatever unit `cost` counts; one item that exceeds it alone goes alone.
    cost
        What one item costs; needed for `max_cost`.
    max_concurrency
        The most calls at the same time.

    Notes
    -----
    A call that ends in a `PermanentError` is made again for each caller alone, so that nobody fails for another's
    items. Any other error goes to every caller of the call. A caller that was cancelled, or has failed already,
    takes its items that have not started with it; a call under way goes on for the others.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_items: int,
        max_cost: int | None = None,
        cost: Callable[[T], int] | None = None,
        max_concurrency: int = 1,
    ) -> None:
        if max_items < 1 or max_concurrency < 1:
            raise ValueError("max_items and max_concurrency must be at least 1")
        if (max_cost is None) != (cost is None):
            raise ValueError("max_cost and cost belong together: give both or neither")
        self._process = process
        self._max_items = max_items
        self._max_cost = max_cost or 0
        self._cost = cost or (lambda _: 0)
        self._max_concurrency = max_concurrency
        self._waiting: deque[tuple[_Submission[T, R], int, int]] = deque()  # whose, which item, its cost
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    async def submit(self, items: Sequence[T]) -> list[R]:
        """Return one result for each item, in their order.

        Raises
        ------
        TransientError
            The batcher is closed, or was closed before the items were done.
        Exception
            Whatever `process` raised.
        """
        if self._closed:
            raise _closed()
        if not items:
            return []
        submission: _Submission[T, R] = _Submission(items)
        self._waiting.extend([(submission, n, self._cost(item)) for n, item in enumerate(items)])
        asyncio.get_running_loop().call_soon(self._start_calls)
        return await submission.future

    async def aclose(self) -> None:
        """Cancel the calls under way; callers that still wait get a `TransientError`."""
        self._closed = True
        for submission, _, _ in self._waiting:
            submission.fail(_closed())
        self._waiting.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start_calls(self) -> None:
        """Start as many calls as there are items and room for."""
        while len(self._running) < self._max_concurrency and (batch := self._next_batch()):
            # In a context of its own: a call for many must not log under the task of whoever came first.
            task = asyncio.get_running_loop().create_task(self._attempt(batch), context=Context())
            self._running.add(task)
            task.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: list[tuple[_Submission[T, R], int]], task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():  # here and not in the task, which may be cancelled before its first step
            for submission, _ in batch:
                submission.fail(_closed())
        self._start_calls()

    def _next_batch(self) -> list[tuple[_Submission[T, R], int]]:
        """Take the oldest items, as many as fit into one call; empty where nobody waits."""
        batch: list[tuple[_Submission[T, R], int]] = []
        spent = 0
        while self._waiting and len(batch) < self._max_items:
            submission, n, cost = self._waiting[0]
            wanted = not submission.future.done()
            if wanted and batch and spent + cost > self._max_cost:
                break
            self._waiting.popleft()
            if wanted:
                batch.append((submission, n))
                spent += cost
        return batch

    async def _attempt(self, batch: list[tuple[_Submission[T, R], int]]) -> None:
        """Process a batch and tell its callers; each caller's items alone, where together they are refused."""
        callers = list(dict.fromkeys(submission for submission, _ in batch))
        try:
            results = await self._process([submission.items[n] for submission, n in batch])
            if len(results) != len(batch):
                raise ValueError(f"process returned {len(results)} results for {len(batch)} items")  # noqa: TRY301 - goes to the callers
            for (submission, n), result in zip(batch, results, strict=True):
                submission.take(n, result)
        except PermanentError as error:
            if len(callers) == 1:
                callers[0].fail(error)
                return
            for caller in callers:
                if not caller.future.done():
                    await self._attempt([item for item in batch if item[0] is caller])
        except Exception as error:  # noqa: BLE001 - it belongs to the callers, whatever it is
            for caller in callers:
                caller.fail(error)


def _closed() -> TransientError:
    return TransientError("the batcher was closed before these items were done")
