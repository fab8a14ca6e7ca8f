"""One scenario: what it does to the running stack, and the judgement at its end."""

import os
import random
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from deploy.local import Component, LocalStack, State
from shared.blobs import BlobStore
from shared.database.pool import Pool, open_pool
from shared.settings import BlobSettings, DatabaseSettings
from tests.faults.evidence import Whereabouts
from tests.faults.ledger import Ledger
from tests.faults.load import Load
from tests.faults.oracle import Figures, Oracle
from tests.support.eventually import eventually
from tests.support.saboteur import orders
from tests.support.saboteur.orders import Order
from tests.support.stack_thread import StackThread

STOP_LIMIT = timedelta(seconds=15)
"""Within which a service that was asked to stop is gone: its grace period of 3 s, clean-up, and a busy machine."""


@dataclass(frozen=True)
class Scale:
    """How much a run of the suite does to the stack.

    Attributes
    ----------
    rounds
        How often each service is killed.
    outage
        How long a server is away.
    storm
        How long workers join and leave.
    patience
        How long the stack may take to finish all tasks once the fault is over.
    """

    rounds: int
    outage: timedelta
    storm: timedelta
    patience: timedelta


SHORT = Scale(1, timedelta(seconds=5), timedelta(seconds=14), timedelta(seconds=90))
LONG = Scale(20, timedelta(seconds=30), timedelta(seconds=60), timedelta(minutes=5))


class Trial:
    """A context for one test.

    Parameters
    ----------
    thread
        The stack, which outlives the test.
    sabotage
        The folder of the saboteurs' orders.
    ledger
        All uploads since the stack was made.
    reports
        Where the figures go.
    choice
        Decides everything that is left to chance.
    """

    def __init__(
        self,
        thread: StackThread,
        sabotage: Path,
        ledger: Ledger,
        reports: list[dict[str, Any]],
        choice: random.Random,
        name: str,
        scale: Scale,
    ) -> None:
        self.thread = thread
        self.choice = choice
        self.scale = scale
        self._sabotage = sabotage
        self.ledger = ledger
        self._reports = reports
        self._name = name
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        url = SecretStr(self.stack.environment["DATABASE_URL"])
        self.pool: Pool = await open_pool(DatabaseSettings(database_url=url, database_pool_size=2))
        self._exit.push_async_callback(self.pool.close)
        gateways = [gateway.url for gateway in self.stack.services["gateway"]]
        load = Load(gateways, self.ledger, self.choice, self._name, canceled=0.1)
        self.load: Load = await self._exit.enter_async_context(load)
        blobs = BlobStore(BlobSettings(blob_url=self.stack.environment["BLOB_URL"]))
        self._oracle = Oracle(self.where, self.pool, blobs, self.ledger)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    @property
    def stack(self) -> LocalStack:
        """What runs."""
        return self.thread.stack

    @property
    def where(self) -> Whereabouts:
        """Where everything of the stack is."""
        environment = self.stack.environment
        blobs = Path(environment["BLOB_URL"].removeprefix("file://"))
        return Whereabouts(environment["KAFKA_BOOTSTRAP_SERVERS"], blobs, self.stack.services["gateway"][0].url)

    def order(self, service: str, order: Order) -> Path:
        """Have a replica of a service struck, and return the order's file, which is gone at the end of the trial."""
        path = orders.give(self._sabotage, service, order)
        self._exit.callback(path.unlink, missing_ok=True)
        return path

    async def struck(self, given: Iterable[Path]) -> list[int]:
        """Wait until orders are carried out, and return the ids of the processes that did it."""
        return [await eventually(partial(_carried_out, path), self.scale.patience) for path in given]

    def component(self, pid: int) -> Component:
        """Return the replica that runs as this process."""
        return next(part for part in self.stack.components if part.pid == pid)

    async def kill(self, component: Component) -> None:
        """Kill -9; the stack starts it again."""
        await self.thread.do(component.kill())

    @asynccontextmanager
    async def stopped(self, server: Component) -> AsyncIterator[None]:
        """Have a server stopped while the context is open: it refuses connections."""
        await self.thread.do(server.stop())
        try:
            yield
        finally:
            await self.thread.do(server.start())

    async def ready(self, components: Iterable[Component]) -> None:
        """Wait until all of these are ready."""
        for component in components:
            await self.thread.do(component.ready())

    async def restart(self, component: Component) -> None:
        """Ask a service to stop, which it does in time, and wait until the stack has started it again."""
        before, pid = component.restarts, component.pid
        if pid is None:
            raise RuntimeError(f"{component.name} is not running")
        os.kill(pid, signal.SIGTERM)
        await eventually(partial(_gone, component, pid), STOP_LIMIT)
        await eventually(partial(_started_after, component, before), self.scale.patience)

    async def verdict(self, scenario: str, *, faults: int) -> Figures:
        """Wait until all is quiet, judge, and keep the figures.

        Parameters
        ----------
        faults
            How many were injected.
        """
        seconds = await self._oracle.settle(self.scale.patience)
        await self.load.watched_to_the_end(self.scale.patience)
        figures = await self._oracle.judge(seconds)
        self._reports.append({"scenario": scenario, "faults": faults, **asdict(figures)})
        return figures

    def note(self, scenario: str, measured: str) -> None:
        """Keep what was measured, for people, of a scenario that is about more than its tasks."""
        self._reports.append({"scenario": scenario, "measured": measured})


async def _carried_out(path: Path) -> int:
    pid = orders.done_by(path)
    assert pid is not None, f"nobody was struck: {orders.read(path)}"
    return pid


async def _gone(component: Component, pid: int) -> None:
    assert component.pid != pid, f"{component.name} (process {pid}) does not stop"


async def _started_after(component: Component, restarts: int) -> None:
    assert component.restarts > restarts
    assert component.state is State.READY, component.detail
