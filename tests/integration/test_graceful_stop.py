"""How a real worker process stops: within its grace time and beyond it, and when it cannot even start."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.local import ports
from deploy.local.component import START_LIMIT
from deploy.local.process import python_environment
from shared.topics import Topic
from tests.integration.conftest import StackSettings
from tests.support.builders import extracted
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.odd_worker import odd_command, odd_environment

STOPPED = (0, -signal.SIGTERM)
"""Statuses of a process that SIGTERM ended in an orderly way; uvicorn passes the signal on when it is done."""


class Worker:
    """A worker process, and the topics that it works between."""

    def __init__(self, lab: KafkaLab, topic: Topic, output: Topic, folder: Path) -> None:
        self.lab = lab
        self.topic = topic
        self.output = output
        self.folder = folder
        self.log = folder / "log"

    async def send(self, *texts: str, first: int = 0) -> None:
        for part, text in enumerate(texts, start=first):
            await self.lab.send(self.topic.name, extracted([text], part=part).model_dump_json().encode(), key=b"k")

    async def entered(self, *parts: int) -> None:
        async def check() -> None:
            assert all((self.folder / f"entered-{part}").exists() for part in parts), self.log.read_text()

        await eventually(check, START_LIMIT)

    def let_go_on(self) -> None:
        (self.folder / "go-on").touch()

    async def outputs(self, count: int) -> list[bytes]:
        return sorted(record.value or b"" for record in await self.lab.read(self.output.name, count))

    async def committed(self, offset: int) -> None:
        async def check() -> None:
            assert (await self.lab.committed(self.topic)).get(0, 0) == offset

        await eventually(check, START_LIMIT)

    def troubles(self) -> list[str]:
        """Return what it has complained of, other than a broker that is still getting up."""
        entries = map(json.loads, self.log.read_text().splitlines())
        return [
            entry["event"]
            for entry in entries
            if entry["level"] in ("warning", "error", "critical") and not entry["logger"].startswith("aiokafka")
        ]

    @asynccontextmanager
    async def running(self, **env: str) -> AsyncIterator["Running"]:
        environment = odd_environment(self.lab.settings, self.topic, self.output, self.folder)
        [port] = ports.pick(1)
        self.log.touch()
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *odd_command("odd", port),
                env={**python_environment(), **environment, "LOG_FORMAT": "json", **env},
                stderr=log,
            )
        try:
            yield Running(process, self.log)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


class Running:
    """One run of it."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log
        self._log_began_at = log.stat().st_size

    async def ask_to_stop(self) -> None:
        """Send SIGTERM, and return once it consumes no further."""
        self.process.send_signal(signal.SIGTERM)

        async def check() -> None:
            assert b"consuming no further" in self._log.read_bytes()[self._log_began_at :]

        await eventually(check)

    async def end(self) -> int:
        return await before_long(self.process.wait())


@pytest.fixture
async def worker(lab: KafkaLab, settings: StackSettings, tmp_path: Path) -> Worker:
    return Worker(lab, await lab.topic(), await lab.topic(), tmp_path)


async def test_records_in_flight_are_finished_published_and_committed_and_the_rest_is_left(worker: Worker) -> None:
    await worker.send("wait", "wait", "wait")
    async with worker.running() as first:
        await worker.entered(0, 1, 2)
        await first.ask_to_stop()
        await worker.send("at once", first=3)
        assert first.process.returncode is None
        assert await worker.outputs(0) == []
        worker.let_go_on()
        assert await first.end() in STOPPED
    assert await worker.outputs(3) == [b"0", b"1", b"2"]
    await worker.committed(3)
    async with worker.running() as second:
        await worker.committed(4)
        await second.ask_to_stop()
        assert await second.end() in STOPPED
    assert await worker.outputs(4) == [b"0", b"1", b"2", b"3"], "nothing was done twice"
    assert worker.troubles() == []


async def test_what_outlasts_the_grace_time_is_given_up_and_comes_again(worker: Worker) -> None:
    await worker.send("wait")
    async with worker.running(GRACE_PERIOD="0.5") as first:
        await worker.entered(0)
        asked_at = time.monotonic()
        await first.ask_to_stop()
        assert await first.end() in STOPPED
        assert time.monotonic() - asked_at > 0.5
    assert await worker.outputs(0) == []
    await worker.committed(0)
    worker.let_go_on()
    async with worker.running() as second:
        await worker.committed(1)
        await second.ask_to_stop()
        assert await second.end() in STOPPED
    assert await worker.outputs(1) == [b"0"]
    assert worker.troubles() == ["batch given up by the stop"]


async def test_a_stopped_worker_has_left_its_group_so_that_a_successor_need_not_wait_for_its_session(
    worker: Worker,
) -> None:
    await worker.send("at once")
    async with worker.running() as running:
        await worker.committed(1)
        assert await worker.lab.members(worker.topic) == 1
        await running.ask_to_stop()
        assert await running.end() in STOPPED
    assert await worker.lab.members(worker.topic) == 0


async def test_a_worker_whose_consumers_cannot_start_ends_itself_rather_than_live_without_them(worker: Worker) -> None:
    async with worker.running(ODD_START_FAILS="1") as running:
        assert await running.end() == os.EX_SOFTWARE
    assert "nothing consumes any more: OSError('no broker')" in worker.log.read_text()
