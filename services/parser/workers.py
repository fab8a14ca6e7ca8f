"""Child processes that do the parsing, so that no PDF can take the service down or hold up its event loop."""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from services.parser.engines import Extraction, ParserOptions, Plan, begin, extract
from services.parser.engines.base import most_telling
from services.parser.engines.options import MEBIBYTE
from shared.deadline import off_the_clock
from shared.errors import DeadlineExceededError, PdfLimitError, PermanentError, WorkerLostError

if sys.platform == "linux":
    import resource

_T = TypeVar("_T")

_KILLED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a child that an operator or the kernel's memory killer ended, whatever it was reading."""

_PRELOADED = ["services.parser.engines", "pebble"]
"""Modules loaded in the fork server, once: a fresh child is ready in 5 ms instead of 300 ms."""


class Workers:
    """A pool of child processes that parse.

    With `engine=auto`, a document that makes a child die or run out of time is read again by pypdf in a fresh child;
    both attempts together stay within the options' timeout. Cancelling the awaiting task kills the child that works
    for it. The children die with the process that owns the pool, however that one ends.

    A task waits for a free child off the clock of its unit, so that documents which take their time never cost others
    theirs.

    One race remains: pebble declares the whole pool broken when a child dies while no task runs. Then the pool is
    replaced, and the tasks that were waiting in it are run in the new one.
    """

    def __init__(self, options: ParserOptions) -> None:
        self._options = options
        self._pool = _new_pool(options)
        self._running: set[ProcessFuture[Any]] = set()
        self._free = asyncio.Semaphore(options.workers)
        self._closed = False

    async def start(self) -> None:
        """Start the children now, which takes about half a second, and not at the first document."""
        await asyncio.wrap_future(await asyncio.to_thread(self._pool.schedule, os.getpid))

    async def begin(self, path: Path) -> tuple[Plan, Extraction | None]:
        """Find out what a document is made of, and extract it at once where it is a single shard.

        Raises
        ------
        NotAPdfError, CorruptPdfError, EncryptedPdfError, EmptyPdfError, PdfLimitError
            The document cannot be read.
        DeadlineExceededError, WorkerLostError
            It took too long; the child was lost for no fault of the document's.
        """
        return await self._in_turn(self._attempts(), begin, path)

    async def extract(self, path: Path, first_page: int, last_page: int, engine: str) -> Extraction:
        """Extract the text of a range of pages, numbered from 1, both ends included, with the engine of the plan.

        Raises
        ------
        CorruptPdfError, EncryptedPdfError, EmptyPdfError, PdfLimitError
            Not one page of the range can be read.
        DeadlineExceededError, WorkerLostError
            It took too long; the child was lost for no fault of the document's.
        """
        return await self._in_turn(self._attempts(engine), extract, path, first_page, last_page, engine)

    async def aclose(self) -> None:
        """Kill the children; whoever still waits for one gets `WorkerLostError`."""
        self._closed = True
        for future in list(self._running):
            future.cancel()
        await asyncio.to_thread(_stop, self._pool)

    def _attempts(self, planned_engine: str | None = None) -> list[ParserOptions]:
        if self._options.engine != "auto" or planned_engine == "pypdf":
            return [self._options]
        return [self._options, replace(self._options, engine="pypdf")]

    async def _in_turn(self, attempts: list[ParserOptions], step: Callable[..., _T], *args: Any) -> _T:
        with off_the_clock():
            await self._free.acquire()
        try:
            return await self._ask(attempts, step, *args)
        finally:
            self._free.release()

    async def _ask(self, attempts: list[ParserOptions], step: Callable[..., _T], *args: Any) -> _T:
        """Run a step; where the document is too much for it, run it again as the next attempt says.

        A child that was lost for no fault of the document's is no reason for another engine: the text of a page must
        not depend on who was restarted when. That is worth a later try by the same one.
        """
        failures: list[DeadlineExceededError | PermanentError] = []
        for options in attempts:
            try:
                return await self._run(self._options.timeout / len(attempts), step, *args, options)
            except (DeadlineExceededError, PdfLimitError) as error:
                failures.append(error)
            except PermanentError as error:
                failures.append(error)
                break
        raise _verdict(failures)

    async def _run(self, limit: timedelta, step: Callable[..., _T], *args: Any) -> _T:
        for _ in range(2):
            pool = self._working_pool()
            try:
                return await self._result(pool.schedule(step, args=args, timeout=limit.total_seconds()))
            except ProcessExpired as error:
                raise self._lost(error) from error
            except TimeoutError as error:
                raise DeadlineExceededError(f"The PDF took longer than {limit.total_seconds():g} s.") from error
            except BrokenProcessPool:
                continue
        raise WorkerLostError("The pool of parsing processes broke down twice in a row.")

    async def _result(self, future: "ProcessFuture[_T]") -> _T:
        self._running.add(future)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise _closed() from None
            raise
        finally:
            self._running.discard(future)

    def _working_pool(self) -> ProcessPool:
        if self._closed:
            raise _closed()
        if not self._pool.active:
            threading.Thread(target=_stop, args=(self._pool,), name="stop-broken-pool", daemon=True).start()
            self._pool = _new_pool(self._options)
        return self._pool

    def _lost(self, error: ProcessExpired) -> PdfLimitError | WorkerLostError:
        code: int = error.exitcode
        if code >= 0 or code in _KILLED_FROM_OUTSIDE:
            return WorkerLostError(f"A parsing process ended from outside (exit code {code}).")
        limit = self._options.memory_limit // MEBIBYTE
        return PdfLimitError(
            f"The PDF needs more than {limit:,} MiB of memory to read, or crashes its reader "
            f"({signal.Signals(-code).name})."
        )


def _verdict(failures: list[DeadlineExceededError | PermanentError]) -> Exception:
    """Choose what to report after all attempts failed: the more telling refusal, or that the last one took too long."""
    if not isinstance(failures[-1], PermanentError):
        return failures[-1]
    return most_telling(error for error in failures if isinstance(error, PermanentError))


def _closed() -> WorkerLostError:
    return WorkerLostError("The parser is shutting down.")


def _new_pool(options: ParserOptions) -> ProcessPool:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return ProcessPool(
        max_workers=options.workers,
        max_tasks=options.max_tasks,
        initializer=_initialise_child,
        initargs=(options.memory_limit,),
        context=context,
    )


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _initialise_child(memory_limit: int) -> None:
    # pebble lets SIGTERM run Python code, which a child that hangs in C never does.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a broken file is worth thousands of warnings
    threading.Thread(target=_die_with_the_service, name="watch-service", daemon=True).start()
    if sys.platform == "linux":
        limit = _address_space() + memory_limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_the_service() -> None:
    """Wait for the end of the process that owns the pool, then exit, even if the main thread hangs in C.

    PR_SET_PDEATHSIG cannot do this: the parent here is the fork server, which lives as long as its children do.
    """
    service = multiprocessing.parent_process()
    if service is not None:
        service.join()
        os._exit(1)


def _address_space() -> int:
    """Return the bytes of address space that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
