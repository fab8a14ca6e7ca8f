"""Throughput: pages per second of the whole stack, and of the bare loop on the same files, by the cores they use."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import asyncpg
from pydantic import BaseModel

from bench.corpus import Corpus
from bench.cpu import Meter, processes_of
from bench.journey import travel_together
from cli.client import Client
from deploy.local import LocalStack
from deploy.local.services import service_environment

ROUNDS = 5
AT_ONCE = 16


class Run(BaseModel):
    """All files of a workload, once.

    Attributes
    ----------
    seconds
        Wall time, from the first request to the last event `complete`; of the loop from the first file to its end.
    cpu
        Processor seconds by process, child processes included.
    """

    pages: int
    seconds: float
    cpu: dict[str, float]

    @property
    def pages_per_second(self) -> float:
        """Pages by wall time."""
        return self.pages / self.seconds

    @property
    def cores(self) -> float:
        """How many cores were busy."""
        return sum(self.cpu.values()) / self.seconds

    @property
    def pages_per_core_second(self) -> float:
        """Pages per second and core used."""
        return self.pages_per_second / self.cores


class Round(BaseModel):
    """The stack and right after it the loop, on the same files and an empty table."""

    stack: Run
    loop: Run


class Workload(BaseModel):
    """Some documents, and what their rounds took."""

    documents: int
    pages: int
    rounds: list[Round]

    @property
    def efficiency(self) -> float:
        """The stack's pages per second and core as a share of the loop's; the median of the rounds' ratios."""
        return median(one.stack.pages_per_core_second / one.loop.pages_per_core_second for one in self.rounds)


class Throughput(BaseModel):
    """Many short documents, and a few long ones."""

    small: Workload
    large: Workload


class Contest:
    """Runs both sides.

    Parameters
    ----------
    loop
        The process of `bench.loop`.
    database
        A connection to the database that both write to.
    """

    def __init__(self, stack: LocalStack, client: Client, loop: Process, database: asyncpg.Connection) -> None:
        self._stack = stack
        self._client = client
        self._loop = loop
        self._database = database

    async def rounds(self, corpus: Corpus, sources: Sequence[Path]) -> Workload:
        """Let both sides have the same files, several times, by turns.

        A whole round before is thrown away: a broker that has just started takes twice the processor time.
        """
        await self._round(corpus.fresh(sources))
        rounds = [await self._round(corpus.fresh(sources)) for _ in range(ROUNDS)]
        return Workload(documents=len(sources), pages=rounds[0].stack.pages, rounds=rounds)

    async def _round(self, paths: Sequence[Path]) -> Round:
        await self._empty()
        with Meter(processes_of(self._stack)) as meter:
            journeys = await travel_together(self._client, paths, AT_ONCE)
        stack = Run(pages=sum(journey.pages for journey in journeys), seconds=meter.seconds, cpu=meter.cpu)
        await self._empty()
        return Round(stack=stack, loop=await self._bare(paths))

    async def _bare(self, paths: Sequence[Path]) -> Run:
        if self._loop.stdin is None or self._loop.stdout is None:
            raise RuntimeError("the loop was started without pipes")
        processes = {"loop": self._loop.pid, "postgres": processes_of(self._stack)["postgres"]}
        with Meter(processes) as meter:
            self._loop.stdin.write(json.dumps([str(path) for path in paths]).encode() + b"\n")
            answer = await self._loop.stdout.readline()
            if not answer:
                raise RuntimeError("the bare loop died; its last words are above")
        return Run(pages=int(answer), seconds=meter.seconds, cpu=meter.cpu)

    async def _empty(self) -> None:
        """Start from an empty table, for a vector costs more the more there are, and with nothing left to flush."""
        await self._database.execute("TRUNCATE chunks")
        await self._database.execute("CHECKPOINT")


async def measure_throughput(stack: LocalStack, corpus: Corpus, further: Path | None) -> Throughput:
    """Measure both workloads; `further` is a folder with more large PDFs."""
    large = await corpus.large(further)
    async with Client(stack.url) as client, _loop(stack) as loop:
        database = await asyncpg.connect(stack.environment["DATABASE_URL"])
        try:
            contest = Contest(stack, client, loop, database)
            return Throughput(
                small=await contest.rounds(corpus, corpus.small()), large=await contest.rounds(corpus, large)
            )
        finally:
            await database.close()


@asynccontextmanager
async def _loop(stack: LocalStack) -> AsyncIterator[Process]:
    """Run the loop's process, with the environment of a service."""
    command = (sys.executable, "-P", "-m", "bench.loop")
    loop = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env=service_environment(stack.environment)
    )
    try:
        yield loop
    finally:
        if loop.stdin is not None:
            loop.stdin.close()
        await loop.wait()
