"""`paperlane demo`: the whole journey on a stack of its own, which is gone again afterwards."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from cli.client import Client
from cli.documents import show_hits
from cli.progress import Outcome, process_all
from cli.sample import write_sample
from deploy.local import Component, LocalStack, LocalStackError, StackOptions, State

SAMPLES = Path(__file__).parents[1] / "tests" / "data" / "samples"

PAGES = 500
"""Pages of the generated document: enough for its progress to be watched."""

QUERY = "why does a loaf of bread get a crisp crust?"

REFUSED = {
    "11-encrypted-openpassword.pdf": "pdf_encrypted",
    "12-encrypted-aes256-user-pw.pdf": "pdf_encrypted",
    "16-truncated.pdf": "pdf_corrupt",
    "17-zero-pages.pdf": "pdf_without_pages",
    "18-empty.pdf": "not_a_pdf",
    "19-html-named.pdf": "not_a_pdf",
    "20-bomb-flate1g-double.pdf": "pdf_limit_exceeded",
}
"""Samples that no one can read, and the reason that must be given for each."""


def demo() -> None:
    """Start a stack, upload the sample PDFs, watch them, search them, and stop. Takes about half a minute."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that does not answer is shown as a state
    console = Console(highlight=False, soft_wrap=True)
    try:
        surprises = asyncio.run(_demo(console))
    except LocalStackError as error:
        console.print(f"[bold red]paperlane demo:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    for surprise in surprises:
        console.print(f"[bold red]not as it should be:[/] {escape(surprise)}")
    if surprises:
        raise typer.Exit(1)
    _say_goodbye(console)


async def _demo(console: Console) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="paperlane-demo-") as folder:
        generated = Path(folder) / f"generated-{PAGES}-pages.pdf"
        await asyncio.to_thread(write_sample, generated, PAGES)
        console.print("Starting Apache Kafka, PostgreSQL and the five services …")
        began = time.monotonic()

        def changed(part: Component) -> None:
            if part.state is State.READY:
                console.print(f"{time.monotonic() - began:6.1f} s  {part.name} is ready", style="dim")

        async with LocalStack(StackOptions(data=Path(folder) / "data", port=0), changed) as stack:
            surprises = await _journey(stack.url, [*sorted(SAMPLES.glob("*.pdf")), generated], console)
            console.print("\nStopping the stack …")
    return surprises


async def _journey(url: str, paths: Sequence[Path], console: Console) -> list[str]:
    console.print(f"\nUploading {len(paths)} PDFs, some of them broken on purpose:")
    began = time.monotonic()
    async with Client(url) as client:
        outcomes = await process_all(client, paths, console, at_once=len(paths))
    seconds = time.monotonic() - began
    done = [outcome for outcome in outcomes if outcome.status == "completed"]
    console.print(
        f"\n{len(done)} documents with {sum(o.pages for o in done):,} pages became {sum(o.chunks for o in done):,}"
        f" searchable chunks in {seconds:.1f} s; {len(outcomes) - len(done)} were refused with their reasons."
        f" The stream of {outcomes[-1].name} showed {len(outcomes[-1].steps)} steps of progress.",
    )
    console.print(f"\nSearching for “{QUERY}”:")
    hits = await show_hits(url, QUERY, 3, console)
    return [*filter(None, map(_surprise, outcomes)), *([] if hits else ["the search found nothing"])]


def _surprise(outcome: Outcome) -> str | None:
    """Say what is wrong with an outcome; None where it is as it should be."""
    reason = REFUSED.get(outcome.name)
    if reason is None:
        return None if outcome.status == "completed" else f"{outcome.name} {outcome.status}: {outcome.detail}"
    named = outcome.code == reason or f"({reason})" in outcome.detail
    return None if named else f"{outcome.name} should have been refused as {reason}, but {outcome.status}"


def _say_goodbye(console: Console) -> None:
    console.print(
        "\n[bold green]All of it went as it should.[/] To go on:\n"
        "  make up                                           the same stack, left running at http://localhost:8000\n"
        "  curl -F file=@x.pdf localhost:8000/upload         upload a document of yours\n"
        "  curl -N localhost:8000/tasks/ID/stream            watch it\n"
        "  curl 'localhost:8000/search?q=your+question'      search it\n"
        "  README.md, docs/architecture.md                   how it works",
    )
