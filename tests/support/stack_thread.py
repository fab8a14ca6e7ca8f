"""An embedded stack in a thread of its own: each test has its own event loop, and the stack outlives them all."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from deploy.local.stack import LocalStack, StackOptions

T = TypeVar("T")


class StackThread:
    """A context in which a stack runs, in a thread that lives as long: its processes die with the one that forked."""

    def __init__(self, options: StackOptions) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="stack")
        self._options = options
        self._stack: LocalStack | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._stack = self._run(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self.stack.stop())
        finally:
            self._end()

    @property
    def stack(self) -> LocalStack:
        """What runs."""
        if self._stack is None:
            raise RuntimeError("the stack runs only inside the context")
        return self._stack

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what touches the stack's components, from the event loop of a test."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    @contextmanager
    def frozen(self, server: str) -> Iterator[None]:
        """Stop a server's processes in their tracks: connections stay open, and nobody answers."""
        pid = self.stack.servers[server].pid
        if pid is None:
            raise RuntimeError(f"{server} is not running")
        parent = psutil.Process(pid)
        parent.suspend()  # first, so that it starts no more of them
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    async def _start(self) -> LocalStack:
        return await LocalStack(self._options).__aenter__()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
