"""Clients that take little or nothing, beside hundreds of quick ones: these do not notice, and memory stays bounded."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from statistics import quantiles

import httpx
import psutil
import pytest

from shared.tasks import TaskStatus
from tests.faults.broadcast import Broadcast, broadcast
from tests.faults.conftest import SSE_SEND_TIMEOUT
from tests.faults.documents import good
from tests.faults.trial import LONG, Trial
from tests.support.eventually import eventually
from tests.support.watchers import Sluggard, Watcher, watching

QUICK = 200
TASKS = 4
"""Tasks that the quick clients share."""

STATE = 4 * 1024
"""Bytes of a state. A phase offers more of them than two kernels would buffer."""

ALONE, BESIDE = timedelta(seconds=3), SSE_SEND_TIMEOUT + timedelta(seconds=6)
"""Phases without and with the bad clients, the latter long enough to fill a frozen one's buffers and to drop it."""

SIP, SIP_INTERVAL = 1200, timedelta(seconds=0.1)
"""Bytes that the slow client reads, and how often: a fifth of what it is offered."""

MOST_STALE = 128 * 1024
"""Bytes between a slow client and the newest state: what two kernels buffer. What was offered beyond it is skipped."""

NOTICED = 3.0
"""Ratio of the quick clients' lags beside bad ones to those alone. Of two phases of one kind it is up to 1.5 on a busy
machine; a gateway that waits for one client makes the others wait for a send timeout, which is a ratio of a hundred."""

FROZEN = 10
"""Frozen clients of each task where memory is measured."""

LARGE, LARGE_FOR = 256 * 1024, SSE_SEND_TIMEOUT + timedelta(seconds=3)
"""Bytes of a state there, and how long they are written: to keep them would take 100 MiB."""

LOOKS = 20
"""How often memory is looked at."""

MOST_GROWTH = 48 * 1024 * 1024
"""Bytes that they may cost the gateway: one fetch of updates, decoded and encoded, and a state or two a client."""

CLIENTS = re.compile(r"^paperlane_sse_clients (\S+)$", re.MULTILINE)


@pytest.fixture(autouse=True)
async def all_are_up(trial: Trial) -> None:
    """What another test has killed is back."""
    await trial.ready(trial.stack.components)


async def test_quick_clients_do_not_notice_a_slow_and_a_frozen_one(trial: Trial) -> None:
    url, number = trial.where.gateway, QUICK * 5 if trial.scale is LONG else QUICK
    alone: list[float] = []
    beside: list[float] = []
    async with broadcast(trial.pool, trial.where.kafka, TASKS) as updates:
        watchers = [Watcher(updates.tasks[n % TASKS]) for n in range(number)]
        async with watching(url, watchers):
            await count_clients(url, number)
            await lags(watchers, updates, ALONE)  # everything is warm then
            for _ in range(trial.scale.rounds):
                alone += await lags(watchers, updates, ALONE)
                async with slow_and_frozen(url, number, updates):
                    beside += await lags(watchers, updates, BESIDE)
                alone += await lags(watchers, updates, ALONE)
            await updates.write(status=TaskStatus.COMPLETED)
            await eventually(partial(all_know_the_end, watchers))
    late, usual = percentile(beside, 95), percentile(alone, 95)
    measured = f"95 % of all states come within {late:.3f} s, without the two within {usual:.3f} s"
    trial.note(f"{number} quick clients beside a slow and a frozen one", measured)
    assert late < NOTICED * usual


async def test_quick_clients_see_the_end_of_real_tasks_beside_frozen_ones(trial: Trial) -> None:
    url = trial.where.gateway
    uploads = await trial.load.upload([good(200, trial.choice.getrandbits(32)) for _ in range(TASKS)])
    tasks = [upload.task_id for upload in uploads if upload.task_id]
    watchers = [Watcher(tasks[n % TASKS]) for n in range(QUICK)]
    async with frozen_clients(url, [Sluggard(task) for task in tasks for _ in range(FROZEN)]) as frozen:
        await asyncio.gather(*(watcher.run(url) for watcher in watchers))
    assert {(w.last["progress"], w.end and w.end["status"]) for w in watchers} == {(100, TaskStatus.COMPLETED)}
    await trial.verdict("frozen clients beside quick ones", faults=len(frozen))


async def test_memory_stays_bounded_by_clients_that_take_nothing(trial: Trial) -> None:
    url, gateway = trial.where.gateway, psutil.Process(trial.stack.services["gateway"][0].pid)
    async with broadcast(trial.pool, trial.where.kafka, TASKS) as updates:
        await updates.write_for(LARGE_FOR / 4, LARGE)  # what a fetch takes, it takes without clients, too
        used = [gateway.memory_info().rss]
        async with frozen_clients(url, [Sluggard(task) for task in updates.tasks for _ in range(FROZEN)]) as frozen:
            await count_clients(url, len(frozen))
            for _ in range(LOOKS):
                await updates.write_for(LARGE_FOR / LOOKS, LARGE)
                used.append(gateway.memory_info().rss)
            await count_clients(url, 0)
            assert not connected(gateway) & {client.port for client in frozen}
    growth = max(used) - used[0]
    trial.note("memory beside frozen clients", f"{growth / 2**20:.0f} MiB more for {len(frozen)} of them")
    assert growth < MOST_GROWTH


@asynccontextmanager
async def frozen_clients(url: str, clients: Sequence[Sluggard]) -> AsyncIterator[Sequence[Sluggard]]:
    """Have clients ask for streams, and read nothing."""
    try:
        await asyncio.gather(*(client.connect(url) for client in clients))
        yield clients
    finally:
        for client in clients:
            client.close()


@asynccontextmanager
async def slow_and_frozen(url: str, quick: int, updates: Broadcast) -> AsyncIterator[None]:
    """Have a slow and a frozen client watch beside others, and look at the end what became of them."""
    first = updates.version
    async with frozen_clients(url, [Sluggard(updates.tasks[0]) for _ in range(2)]) as (slow, _):
        await count_clients(url, quick + 2)
        async with sipping(slow):
            yield
            await count_clients(url, quick + 1)  # the frozen one is gone, the slow one is not
        assert await read_up_to(slow, updates.version) < MOST_STALE
        assert len(slow.states) < (updates.version - first) / 2, "it skips states"
    await count_clients(url, quick)


@asynccontextmanager
async def sipping(slow: Sluggard) -> AsyncIterator[None]:
    """Read a little now and then while the context is open."""

    async def sip() -> None:
        while await slow.take(SIP):  # noqa: ASYNC110  being slow is what it is for
            await asyncio.sleep(SIP_INTERVAL.total_seconds())

    task = asyncio.create_task(sip())
    try:
        yield
    finally:
        task.cancel()


async def read_up_to(slow: Sluggard, version: int) -> int:
    """Read up to a state, as fast as it goes, and return how many bytes were before it."""
    before = len(slow.taken)
    while not slow.states or slow.states[-1]["version"] < version:
        assert await slow.take(64 * 1024), "the stream ended before"
    versions = [state["version"] for state in slow.states]
    assert versions == sorted(set(versions))
    return len(slow.taken) - before


async def lags(watchers: Sequence[Watcher], updates: Broadcast, duration: timedelta) -> list[float]:
    """Write states, and return how late they came, once all have the newest one."""
    for watcher in watchers:
        watcher.lags.clear()
    await updates.write_for(duration, STATE)
    await eventually(partial(all_know, watchers, updates.version))
    return [lag for watcher in watchers for lag in watcher.lags]


def connected(process: psutil.Process) -> set[int]:
    """Return the ports of those who are connected to a process."""
    return {peer.raddr.port for peer in process.net_connections() if peer.status == psutil.CONN_ESTABLISHED}


async def count_clients(url: str, wanted: int) -> None:
    """Wait until a gateway has so many clients that watch."""

    async def count() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            counted = CLIENTS.findall((await client.get(f"{url}/metrics")).text)
        assert [float(number) for number in counted] == [wanted]

    await eventually(count)


async def all_know(watchers: Sequence[Watcher], version: int) -> None:
    """Assert that all quick clients have a state."""
    behind = [watcher.version for watcher in watchers if watcher.version < version]
    assert not behind, f"{len(behind)} of {len(watchers)} wait for {version} and have {behind[:5]}"


async def all_know_the_end(watchers: Sequence[Watcher]) -> None:
    """Assert that all quick clients were told that their task is over."""
    waiting = [watcher for watcher in watchers if watcher.end is None]
    assert not waiting, f"{len(waiting)} of {len(watchers)} wait for the end"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile."""
    return quantiles(values, n=100)[percent - 1]
