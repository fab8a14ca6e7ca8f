"""A real worker whose handler does what each record's text says, for tests that need a process of their own.

Texts: `wait` waits until the test lets it go on, `hang` waits without end and ignores its cancellation, `block` holds
up the whole event loop, `cancel` ends the consume loop as nothing should be able to; the last three only once in a
folder. Anything else is done at once. What is done is published, as the part's number.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

from faststream.asgi import AsgiFastStream
from pydantic import Field

from deploy.local.process import ROOT
from shared.broker import Broker, subscribe
from shared.events import ChunksExtracted, Stage
from shared.kafka import Outgoing
from shared.settings import KafkaSettings
from shared.stage import Runtime, StageRunner
from shared.subscription import Subscription
from shared.topics import Topic
from shared.worker import WorkerSettings, create_worker

POLL = 0.01
"""Seconds between two looks for a file."""


class OddSettings(WorkerSettings):
    """Which topic it works on, where it publishes, and the folder through which the test and it talk."""

    odd_topic: str = Field()
    odd_output: str = Field()
    odd_folder: Path = Field()
    odd_start_fails: bool = Field(default=False)


class OddHandler:
    """Does what the records say."""

    def __init__(self, folder: Path, output: str) -> None:
        self._folder = folder
        self._output = output

    async def handle(self, event: ChunksExtracted) -> Sequence[Outgoing]:
        """Do what an event says."""
        text = event.chunks[0].text
        (self._folder / f"entered-{event.part}").touch()
        if text == "wait":
            await self._file("go-on")
        elif text in ("hang", "block", "cancel") and not (self._folder / text).exists():
            (self._folder / text).touch()
            await {"hang": self._hang, "block": self._block, "cancel": self._cancel}[text]()
        return [Outgoing(self._output, str(event.part).encode(), str(event.part).encode())]

    async def _file(self, name: str) -> None:
        while not (self._folder / name).exists():  # noqa: ASYNC110  another process makes it
            await asyncio.sleep(POLL)

    async def _hang(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def _block(self) -> None:
        time.sleep(3600)  # noqa: ASYNC251  that is what it is for

    async def _cancel(self) -> None:
        for task in asyncio.all_tasks():
            if "_run_consume_loop" in repr(task.get_coro()):
                task.cancel()
        await asyncio.Event().wait()


def odd_command(_name: str, port: int) -> Sequence[str]:
    """Return the command line that runs the worker."""
    return (
        *(sys.executable, "-m", "uvicorn", "tests.support.odd_worker:create_app", "--factory"),
        *("--app-dir", str(ROOT), "--port", str(port), "--log-level", "warning"),
    )


def odd_environment(settings: KafkaSettings, topic: Topic, output: Topic, folder: Path) -> dict[str, str]:
    """Return what tells the worker where it works."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "ODD_TOPIC": topic.name,
        "ODD_OUTPUT": output.name,
        "ODD_FOLDER": str(folder),
    }


def create_app() -> AsgiFastStream:
    """Build the worker, configured from the environment."""
    settings = OddSettings()
    if settings.odd_start_fails:
        patch.object(Broker, "start", side_effect=OSError("no broker")).start()
    topic = Topic(settings.odd_topic, Stage.EMBED, f"{settings.odd_topic}.group")
    handler = OddHandler(settings.odd_folder, settings.odd_output)

    @asynccontextmanager
    async def open_context(runtime: Runtime) -> AsyncIterator[Runtime]:
        yield runtime

    def register(broker: Broker, runtime: Runtime) -> list[Subscription]:
        runner = StageRunner(topic, ChunksExtracted, handler.handle, runtime)
        return [subscribe(broker, topic, runner, breaker=runner.breaker, max_records=10)]

    return create_worker("odd", settings, [topic], open_context, register)
