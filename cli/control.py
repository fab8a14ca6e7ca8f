"""`paperlane cancel | replay`: changes the course of tasks."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console

from cli.client import Answer, ApiError, Client
from cli.documents import DEFAULT_URL, Url
from cli.printable import printable
from cli.running import run

TaskIds = Annotated[list[UUID], typer.Argument(help="Tasks, by their ids.")]


def cancel(task_ids: TaskIds, url: Url = DEFAULT_URL) -> None:
    """Cancel tasks: what waits of them is dropped, what was indexed is removed. Exit status 1 where one was over."""
    _exit(run(_cancel(task_ids, url)))


async def _cancel(task_ids: list[UUID], url: str) -> list[ApiError]:
    async with Client(url) as client:
        return await each(task_ids, client.cancel, "canceled")


def replay(task_ids: TaskIds, url: Url = DEFAULT_URL) -> None:
    """Run the failed parts of failed tasks again. Exit status 1 where one had not failed."""
    _exit(run(_replay(task_ids, url)))


async def _replay(task_ids: list[UUID], url: str) -> list[ApiError]:
    async with Client(url) as client:
        return await each(task_ids, client.replay, "replayed")


def _exit(refusals: list[ApiError]) -> None:
    if refusals:
        raise typer.Exit(1)


async def each(task_ids: Iterable[UUID], act: Callable[[UUID], Awaitable[Answer]], done: str) -> list[ApiError]:
    """Do something with each task, tell what came of it, and return the refusals: none of them stops the rest.

    Raises
    ------
    ApiError
        The service does not answer, so that the rest would fare no better.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    refusals = []
    for task_id in dict.fromkeys(task_ids):
        try:
            await act(task_id)
            console.print(f"{task_id}: {done}")
        except ApiError as error:
            if error.code is None:
                raise
            refusals.append(error)
            console.print(f"{task_id}: {printable(str(error))}", style="red")
    return refusals
