"""One supervised part of the stack: started, watched, restarted when it dies, stopped."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from deploy.local.errors import LocalStackError
from deploy.local.process import Process, Processes, Program

FIRST_DELAY = timedelta(milliseconds=200)
"""Wait before the first restart: a crash heals at once, for all that a user sees."""

LONGEST_DELAY = timedelta(seconds=5)
"""Cap of the doubling restart delay: a fixed cause is noticed soon, and a broken start costs little of the CPU."""

QUICK_DEATH = timedelta(seconds=10)
"""A process that dies younger has not worked; imports alone take 1-3 s."""

MOST_QUICK_DEATHS = 5
"""So many in a row, 3 s of delays together, and the stack gives up."""

START_LIMIT = timedelta(seconds=60)
"""Until it must be ready for the first time: twenty times what Kafka or a service needs on a slow machine."""

START_POLL = timedelta(milliseconds=50)
"""How often a starting component is asked whether it is ready."""

WATCH_POLL = timedelta(seconds=3)
"""How often a ready one is asked, for the status display."""


Report = Callable[[str], None]
"""Takes a few words about what is going on."""


class Part(Protocol):
    """What a component runs."""

    async def prepare(self, report: Report) -> Program:
        """Make ready what it needs, once, and return the program; report what takes long."""
        ...

    async def probe(self) -> str | None:
        """Ask the running program whether it is ready: None if so, else the reason."""
        ...


class State(StrEnum):
    """What a component is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Component:
    """A server or a replica of a service.

    Parameters
    ----------
    name
        What it is called, such as ``kafka`` or ``parser`` or ``parser-2``.
    port
        Where it listens on 127.0.0.1.
    part
        What it runs.
    processes
        What starts it.
    changed
        Called after each change of state.

    Attributes
    ----------
    state, detail
        What it is doing, and a few words about it.
    restarts
        How often it was started again since the stack started.
    """

    def __init__(
        self,
        name: str,
        port: int,
        part: Part,
        processes: Processes,
        changed: Callable[["Component"], None],
    ) -> None:
        self.name = name
        self.port = port
        self.state = State.WAITING
        self.detail = ""
        self.restarts = 0
        self._part = part
        self._processes = processes
        self._changed = changed
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._gone = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None
        self._deliberate = False
        self._tail = ""

    @property
    def pid(self) -> int | None:
        """The process id; None while it is not running."""
        return self._process.pid if self._process else None

    @property
    def url(self) -> str:
        """Where it answers, if it speaks HTTP."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it is ready.

        Raises
        ------
        LocalStackError
            If it cannot be started, dies again and again, or is not ready in time.
        """
        self._become(State.STARTING)
        try:
            program = await self._part.prepare(lambda words: self._become(State.STARTING, words))
        except LocalStackError:
            self._become(State.FAILED)
            raise
        self._supervision = asyncio.create_task(self._supervise(program), name=self.name)
        try:
            async with asyncio.timeout(START_LIMIT.total_seconds()):
                await self.ready()
        except TimeoutError:
            raise LocalStackError(
                f"{self.name} was not ready within {START_LIMIT.seconds} s ({self.detail}); {self._last_words(program)}"
            ) from None

    async def ready(self) -> None:
        """Wait until it is ready, however often it is restarted meanwhile.

        Raises
        ------
        LocalStackError
            If it has failed for good.
        """
        ready = asyncio.create_task(self._ready.wait())
        supervision = self._running()
        try:
            await asyncio.wait({ready, supervision}, return_when=asyncio.FIRST_COMPLETED)
            if supervision.done():
                await supervision
                raise LocalStackError(f"{self.name} is stopped")
        finally:
            ready.cancel()

    async def failed(self) -> None:
        """Wait until it has failed for good, and raise that error."""
        await asyncio.wait({self._running()})
        await self._running()

    async def kill(self) -> None:
        """Kill it as a crash would, and return when it is dead; it is restarted then."""
        if (process := self._process) is not None:
            self._deliberate = True
            process.kill()
            await self._gone.wait()

    def kill_for_good(self) -> None:
        """Kill it now, without waiting; a `stop` under way ends by that."""
        if self._supervision is not None:
            self._supervision.cancel()
        if self._process is not None:
            self._process.kill()

    async def stop(self) -> None:
        """Stop it, and wait for its end."""
        if self._supervision is None:
            return
        failed = self._supervision.done() and not self._supervision.cancelled()
        self._supervision.cancel()
        await asyncio.gather(self._supervision, return_exceptions=True)
        if self._process is not None:
            self._become(State.STOPPING)
            await self._process.stop()
            self._forget()
        if not failed:
            self._become(State.STOPPED)

    def _running(self) -> asyncio.Task[None]:
        if self._supervision is None:
            raise LocalStackError(f"{self.name} is not started")
        return self._supervision

    async def _supervise(self, program: Program) -> None:
        loop = asyncio.get_running_loop()
        quick_deaths = 0
        while True:
            born = loop.time()
            code = await self._live(program)
            if self._deliberate or loop.time() - born >= QUICK_DEATH.total_seconds():
                quick_deaths = 0
            else:
                quick_deaths += 1
            self._deliberate = False
            if quick_deaths == MOST_QUICK_DEATHS:
                self._become(State.FAILED)
                raise LocalStackError(
                    f"{self.name} died {quick_deaths} times in a row soon after its start, at last with "
                    f"{_cause(code)}; {self._last_words(program)}"
                )
            self._become(State.RESTARTING, f"after {_cause(code)}")
            await asyncio.sleep(min(LONGEST_DELAY, FIRST_DELAY * 2 ** max(0, quick_deaths - 1)).total_seconds())
            self.restarts += 1

    async def _live(self, program: Program) -> int:
        """Run the program once, from its start to its death; return its exit status."""
        self._process = await self._processes.start(program)
        self._gone.clear()
        self._become(State.STARTING)
        watch = asyncio.create_task(self._watch())
        try:
            code = await self._process.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        self._tail = self._process.tail()
        self._forget()
        return code

    async def _watch(self) -> None:
        while True:
            reason = await self._part.probe()
            if reason is None:
                self._become(State.READY)
            elif self.state in (State.READY, State.NOT_READY):
                self._become(State.NOT_READY, reason)
            else:
                self._become(State.STARTING, reason)
            poll = WATCH_POLL if self.state is State.READY else START_POLL
            await asyncio.sleep(poll.total_seconds())

    def _forget(self) -> None:
        if self._process is not None:
            self._processes.ended(self._process)
            self._process = None
            self._gone.set()

    def _become(self, state: State, detail: str = "") -> None:
        if state is State.READY:
            self._ready.set()
        else:
            self._ready.clear()
        if (state, detail) != (self.state, self.detail):
            self.state, self.detail = state, detail
            self._changed(self)

    def _last_words(self, program: Program) -> str:
        tail = self._process.tail() if self._process else self._tail
        return f"{program.log} ends with:\n{tail}"


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
