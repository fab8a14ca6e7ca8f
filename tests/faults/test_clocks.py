"""Replicas of every service whose hosts have a wrong clock, at work beside those whose clocks are right."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path

import httpx
import pytest

from deploy.local import ports
from deploy.local.orphans import RunRecord
from deploy.local.process import Processes, Program
from deploy.local.services import SERVICES, service_environment
from shared.database.pool import acquire
from tests.faults.conftest import ENVIRONMENT
from tests.faults.documents import mixed
from tests.faults.load import Load
from tests.faults.trial import Trial
from tests.support.eventually import eventually

HOUR, DECADE = timedelta(hours=1), timedelta(days=3650)

JUMPS = [DECADE, -DECADE, HOUR, -HOUR] if os.environ.get("PAPERLANE_FAULTS") == "long" else [DECADE, -DECADE]

UPLOADS = 10
"""Documents that come in by the gateway with the wrong clock."""

DONE = "SELECT count(*) FROM task_units WHERE abs(extract(epoch FROM finished_at - now() - $1::interval)) < 1800"


@pytest.mark.parametrize("jump", JUMPS, ids=lambda jump: f"{jump.total_seconds() / 3600:+.0f}h")
async def test_replicas_with_wrong_clocks_lose_nothing(trial: Trial, tmp_path: Path, jump: timedelta) -> None:
    async with trial.load.running(), replicas(trial, tmp_path, jump) as gateway:
        async with Load([gateway], trial.ledger, trial.choice, f"by-a-clock-{jump.days}-days-off") as load:
            await load.upload(islice(mixed(trial.choice), UPLOADS))
        if jump != DECADE:  # of a clock so far ahead Kafka takes no record, so nothing is done by it that counts
            await eventually(partial(have_worked, trial, jump), trial.scale.patience)
    await trial.verdict(f"clocks wrong by {jump.total_seconds() / 3600:+.0f} h", faults=len(SERVICES))


@asynccontextmanager
async def replicas(trial: Trial, folder: Path, jump: timedelta) -> AsyncIterator[str]:
    """Run one more of each service by a wrong clock while the context is open, and tell where its gateway answers."""
    processes = Processes(RunRecord(folder / "replicas.json"))
    urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(SERVICES, ports.pick(len(SERVICES)), strict=True)}
    env = service_environment({**ENVIRONMENT, **trial.stack.environment})
    async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=30) as client:
        await processes.open()
        stack.push_async_callback(processes.close)
        for name, url in urls.items():
            by_clock = ("tests.support.wrong_clock", str(jump.total_seconds()), name, url.rpartition(":")[2])
            program = Program(command=(sys.executable, "-P", "-m", *by_clock), log=folder / f"{name}.log", env=env)
            stack.push_async_callback((await processes.start(program)).stop)
        for url in urls.values():
            await eventually(partial(is_ready, client, url), trial.scale.patience)
        yield urls["gateway"]


async def is_ready(client: httpx.AsyncClient, url: str) -> None:
    """Assert that a service is ready."""
    try:
        answer = await client.get(f"{url}/readyz")
    except httpx.TransportError as error:
        raise AssertionError(url) from error
    assert answer.status_code == httpx.codes.OK, answer.text


async def have_worked(trial: Trial, jump: timedelta) -> None:
    """Assert that work was done by a wrong clock."""
    async with acquire(trial.pool) as connection:
        assert await connection.fetchval(DONE, jump)
