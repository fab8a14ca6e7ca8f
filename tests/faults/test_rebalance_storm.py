"""Workers join and leave their groups again and again while documents come in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from deploy.local import ports
from deploy.local.orphans import RunRecord
from deploy.local.process import Process, Processes, Program
from deploy.local.services import service_command, service_environment
from tests.faults.conftest import ENVIRONMENT
from tests.faults.trial import Trial

WORKERS = ("parser", "embedder", "indexer", "tracker")

PACE = timedelta(seconds=2)
"""From one who joins, while another leaves, to the next: groups are hardly settled by then."""


async def test_workers_that_join_and_leave_lose_nothing(trial: Trial, tmp_path: Path) -> None:
    changes = int(trial.scale.storm / PACE)
    async with trial.load.running(), _crew(trial, tmp_path) as crew:
        for _ in range(changes):
            await crew.change()
            await asyncio.sleep(PACE.total_seconds())
    await trial.verdict("rebalance storm", faults=2 * changes)


class Crew:
    """Workers beside those of the stack.

    Parameters
    ----------
    processes
        What starts them.
    folder
        Where their logs go.
    """

    def __init__(self, trial: Trial, processes: Processes, folder: Path) -> None:
        self._trial = trial
        self._processes = processes
        self._folder = folder
        self._env = service_environment({**ENVIRONMENT, **trial.stack.environment})
        self._members: list[Process] = []
        self._leaving: list[asyncio.Task[None]] = []

    async def change(self) -> None:
        """Have one join, and the oldest leave where there are some."""
        service = self._trial.choice.choice(WORKERS)
        [port] = ports.pick(1)
        log = self._folder / f"{service}-{port}.log"
        program = Program(command=service_command(service, port), log=log, env=self._env)
        self._members.append(await self._processes.start(program))
        if len(self._members) > len(WORKERS):
            self._leave()

    async def disband(self) -> None:
        """Have all leave."""
        while self._members:
            self._leave()
        await asyncio.gather(*self._leaving)

    def _leave(self) -> None:
        self._leaving.append(asyncio.create_task(self._members.pop(0).stop()))


@asynccontextmanager
async def _crew(trial: Trial, folder: Path) -> AsyncIterator[Crew]:
    processes = Processes(RunRecord(folder / "crew.json"))
    await processes.open()
    crew = Crew(trial, processes, folder)
    try:
        yield crew
    finally:
        await crew.disband()
        await processes.close()
