"""Live progress of many documents: a bar for each on a terminal, a line at the end of each elsewhere."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cli.client import Answer, ApiError, Client

COLOURS = {"completed": "green", "failed": "red", "canceled": "yellow", "refused": "red"}


@dataclass
class Outcome:
    """What became of a file.

    Attributes
    ----------
    status
        completed, failed or canceled; `refused` where it was not even accepted.
    detail
        What came out of it, or why nothing did.
    steps
        The distinct progress values that the stream showed.
    """

    name: str
    status: str = "refused"
    code: str = ""
    detail: str = ""
    pages: int = 0
    chunks: int = 0
    steps: set[int] = field(default_factory=set)

    def end(self, state: Answer) -> None:
        """Take over the state with which a task ended."""
        self.status = state["status"]
        result, error = state.get("result"), state.get("error")
        if result:
            self.pages, self.chunks = result["pages"], result["chunks"]
            self.detail = "; ".join([f"{self.pages:,} pages, {self.chunks:,} chunks", *result["warnings"]])
        if error:
            self.code, self.detail = error["code"], error["message"]


class Board:
    """Shows the progress of documents while it is open."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.fields[name]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    async def process(self, client: Client, path: Path) -> Outcome:
        """Upload a file, show its progress to the end, and return what became of it."""
        outcome = Outcome(path.name)
        bar = self._bars.add_task("", total=100, name=escape(path.name), message="uploading")
        try:
            task_id = await client.upload(path)
        except ApiError as error:
            outcome.detail = str(error)
        else:
            await self._follow(client, task_id, outcome, bar)
        self._close(bar, outcome)
        return outcome

    async def watch(self, client: Client, task_id: str) -> Outcome:
        """Show the progress of a task to its end."""
        outcome = Outcome(task_id)
        bar = self._bars.add_task("", total=100, name=task_id, message="")
        await self._follow(client, task_id, outcome, bar)
        self._close(bar, outcome)
        return outcome

    async def _follow(self, client: Client, task_id: str, outcome: Outcome, bar: TaskID) -> None:
        async for state in client.stream(task_id):
            if "progress" in state:
                outcome.steps.add(state["progress"])
                self._bars.update(bar, completed=state["progress"], message=escape(state["message"]))
            else:
                outcome.end(state)

    def _close(self, bar: TaskID, outcome: Outcome) -> None:
        colour = COLOURS.get(outcome.status, "white")
        text = f"[{colour}]{outcome.status}[/] {escape(outcome.detail)}"
        self._bars.update(bar, message=text)
        if not self._console.is_terminal:
            self._console.print(f"{escape(outcome.name)}: {text}", highlight=False, soft_wrap=True)


async def process_all(client: Client, paths: Sequence[Path], console: Console, at_once: int) -> list[Outcome]:
    """Process files, `at_once` of them at the same time, and return what became of them, in their order."""
    room = asyncio.Semaphore(at_once)

    async def process(path: Path) -> Outcome:
        async with room:
            return await board.process(client, path)

    with Board(console) as board:
        return await asyncio.gather(*map(process, paths))
