"""`paperlane up`: the whole of Paperlane on this machine, by one command."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from dotenv import dotenv_values
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deploy.local import Component, LocalStack, LocalStackError, StackOptions, State

OWN_PARTS = ("KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL", "BLOB_URL")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STOPPED_HARD = 128 + signal.SIGINT

COLOURS = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.NOT_READY: "yellow",
    State.RESTARTING: "red",
    State.FAILED: "bold red",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
}

Replicas = Annotated[int, typer.Option(min=1, help="Processes of this service.")]


def up(
    data: Annotated[Path, typer.Option(help="Folder for everything that survives a restart.")] = Path(".paperlane"),
    port: Annotated[
        int, typer.Option(min=0, max=65_000, help="Port of the gateway; the other services follow. 0: any free ones.")
    ] = 8000,
    gateways: Replicas = 1,
    parsers: Replicas = 1,
    embedders: Replicas = 1,
    indexers: Replicas = 1,
    trackers: Replicas = 1,
) -> None:
    """Start Kafka, PostgreSQL and the five services on this machine, until Ctrl-C.

    Servers of your own are used instead where KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL or BLOB_URL are set.
    """
    counts = {"gateway": gateways, "parser": parsers, "embedder": embedders, "indexer": indexers, "tracker": trackers}
    options = StackOptions(data=data, port=port, replicas=counts, env=own_parts())
    raise typer.Exit(run(options))


def own_parts() -> Mapping[str, str]:
    """Return which parts of the stack the user runs himself, from the environment and `.env` as services read them."""
    settings = {name.upper(): value for name, value in {**dotenv_values(".env"), **os.environ}.items()}
    return {name: value for name in OWN_PARTS if (value := settings.get(name))}


def run(options: StackOptions) -> int:
    """Run a stack until a signal or a failure; return the exit status."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that does not answer is shown as a state
    console = Console()
    display = Display(console)
    try:
        with display:
            return asyncio.run(_serve(options, display))
    except LocalStackError as error:
        Console(stderr=True).print(f"[bold red]paperlane up:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 1


class Display:
    """One line for each component: a table that stays in place on a terminal, else a line for each change.

    Parameters
    ----------
    console
        Where it is shown.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack: LocalStack | None = None
        self._note = "Starting; Ctrl-C stops"
        self._began = time.monotonic()
        self._live = Live(console=console, get_renderable=self._render) if console.is_terminal else None
        self._region = self._live or nullcontext()

    def __enter__(self) -> None:
        self._region.__enter__()

    def __exit__(self, *error: object) -> None:
        self._region.__exit__(None, None, None)

    def show(self, stack: LocalStack) -> None:
        """Show this stack."""
        self._stack = stack

    def changed(self, part: Component) -> None:
        """Show that a component has changed."""
        if self._live is None and not (part.state is State.STARTING and part.detail.startswith("does not")):
            age = f"{time.monotonic() - self._began:.1f} s"
            where = f" on 127.0.0.1:{part.port}" if part.state is State.READY else ""
            self._console.print(
                f"{age:>7}  {part.name}: {_describe(part)}{where}", highlight=False, markup=False, soft_wrap=True
            )

    def note(self, text: str) -> None:
        """Show what the stack as a whole does."""
        self._note = text
        if self._live is None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for part in self._stack.components if self._stack else ():
            state = Text(_describe(part), style=COLOURS[part.state])
            table.add_row(part.name, f"127.0.0.1:{part.port}", state)
        return Group(table, Text(self._note, style="bold"))


def _describe(part: Component) -> str:
    detail = f" ({part.detail})" if part.detail else ""
    restarts = f", restarts: {part.restarts}" if part.restarts else ""
    return f"{part.state}{detail}{restarts}"


async def _serve(options: StackOptions, display: Display) -> int:
    stack = LocalStack(options, display.changed)
    display.show(stack)
    life = asyncio.create_task(_live(stack, display))
    status = 0

    def interrupt() -> None:
        nonlocal status
        if stack.stopping:
            status = STOPPED_HARD
            stack.kill()
        else:
            display.note("Stopping; Ctrl-C again stops at once")
            life.cancel()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, interrupt)
    await asyncio.wait({life})
    if not life.cancelled():
        await life  # it ends only by a failure
    display.note("Stopped")
    return status


async def _live(stack: LocalStack, display: Display) -> None:
    async with stack:
        display.note(f"Paperlane is ready at {stack.url.replace('127.0.0.1', 'localhost')}")
        await stack.wait()
