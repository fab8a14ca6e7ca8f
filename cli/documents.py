"""`paperlane upload | watch | search | tasks`: the API from a terminal."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.client import Client
from cli.progress import Board, process_all
from cli.running import run

AT_ONCE = 16
"""Files that are on their way at the same time; each holds one connection for its stream."""

Url = Annotated[str, typer.Option(envvar="PAPERLANE_URL", help="Where the gateway is.")]

DEFAULT_URL = "http://localhost:8000"


def upload(
    files: Annotated[list[Path], typer.Argument(help="PDF files, or folders of them.")], url: Url = DEFAULT_URL
) -> None:
    """Upload PDFs and watch each of them to its end. Exit status 1 where one did not complete."""
    paths = [path for file in files for path in (sorted(file.rglob("*.pdf")) if file.is_dir() else [file])]
    outcomes = run(_upload(paths, url))
    if any(outcome != "completed" for outcome in outcomes):
        raise typer.Exit(1)


async def _upload(paths: list[Path], url: str) -> list[str]:
    async with Client(url) as client:
        return [outcome.status for outcome in await process_all(client, paths, Console(highlight=False), AT_ONCE)]


def watch(task_ids: Annotated[list[str], typer.Argument(help="Tasks, by their ids.")], url: Url = DEFAULT_URL) -> None:
    """Watch tasks to their end."""
    run(_watch(task_ids, url))


async def _watch(task_ids: list[str], url: str) -> None:
    with Board(Console(highlight=False)) as board:
        async with Client(url) as client:
            await asyncio.gather(*(board.watch(client, task_id) for task_id in task_ids))


def search(
    query: Annotated[str, typer.Argument(help="What to look for, in plain words.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many hits to show.")] = 5,
    url: Url = DEFAULT_URL,
) -> None:
    """Search what was indexed."""
    run(show_hits(url, query, limit, Console(highlight=False, soft_wrap=True)))


async def show_hits(url: str, query: str, limit: int, console: Console) -> int:
    """Print the hits for a query and return how many there were."""
    async with Client(url) as client:
        hits = await client.search(query, limit)
    for hit in hits:
        first, last = hit["first_page"], hit["last_page"]
        pages = f"page {first}" if first == last else f"pages {first}-{last}"
        console.print(f"[bold]{hit['score']:.2f}[/]  {escape(hit['filename'])}, {pages}")
        console.print(f"      {escape(_shortened(hit['text']))}", style="dim")
    if not hits:
        console.print("nothing found")
    return len(hits)


def tasks(
    status: Annotated[str | None, typer.Option(help="Only tasks in this status.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")] = 20,
    url: Url = DEFAULT_URL,
) -> None:
    """List tasks, newest first."""
    run(_tasks({"skip": skip, "limit": limit} | ({"status": status} if status else {}), url))


async def _tasks(params: dict[str, str | int], url: str) -> None:
    async with Client(url) as client:
        page = await client.tasks(params)
    table = Table("task", "status", "%", "file", "message", box=None, header_style="bold")
    for task in page["tasks"]:
        cells = (task["task_id"], task["status"], str(task["progress"]), task["params"]["filename"], task["message"])
        table.add_row(*map(escape, cells))
    Console().print(table)
    Console().print(f"{len(page['tasks'])} of {page['total']} tasks", style="dim")


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else f"{flat[:159]}…"
