"""`paperlane dlq list | show | replay`: what could not be processed, and how to have it processed after all."""

import asyncio
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console

from cli.client import ApiError, Client
from cli.documents import AT_ONCE, DEFAULT_URL, Url
from cli.letters import Letter, whole
from cli.replays import read, replay_all, replay_one
from cli.running import CommandError, complain, run
from deploy.local.folder import DataFolder
from shared.dead_letters import ORIGINS, DeadLetters, noted
from shared.events import DeadLetter
from shared.settings import KafkaSettings

DEFAULT_DATA = Path(".paperlane")

app = typer.Typer(
    help="Look at dead letters, and replay them. Their topics are logs: what was written there stays for 30 days, "
    "replayed or not.",
    no_args_is_help=True,
)


def _topic(name: str) -> str:
    if name not in ORIGINS:
        raise typer.BadParameter(f"it is one of {', '.join(ORIGINS)}")
    return name


TopicName = Annotated[str, typer.Argument(callback=_topic, help="A topic of dead letters: chunks.extracted.dlq, ….")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Data folder of the `paperlane up` whose Kafka is asked. Without it, that of KAFKA_BOOTSTRAP_SERVERS; "
        f"where it is not set, that of the folder {DEFAULT_DATA}."
    ),
]


@app.command("list")
def list_letters(
    topic: Annotated[str | None, typer.Argument(help="Only this topic of dead letters.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")] = 20,
    data: Data = None,
    url: Url = DEFAULT_URL,
) -> None:
    """List dead letters, the newest last, each with its state.

    Of a part of a task that is the status of the task: the dead letter is open while the task is failed. Any other
    record is open until `paperlane dlq replay` has replayed it.
    """
    topics = [_topic(topic)] if topic else list(ORIGINS)
    run(_list(topics, limit, data, url))


async def _list(topics: Iterable[str], limit: int, data: Path | None, url: str) -> None:
    replayed: set[DeadLetter] = set()
    async with DeadLetters(kafka_settings(data)) as letters:
        found = [letter for topic in topics for letter in await _newest(letters, topic, limit, replayed)]
    found = sorted(found, key=lambda letter: letter.written)[-limit:]
    statuses = await _statuses_or_complaint({letter.task for letter in found if letter.task}, url)
    console, count = Console(highlight=False, soft_wrap=True), 0
    for letter in found:
        state = _state(letter, statuses, replayed)
        count += (still_open := state in {"open", "task failed"})
        for line in letter.lines(state, "red" if still_open else "green"):
            console.print(line)
    console.print(f"{len(found)} dead letters, {count} of them open", style="dim")


async def _newest(letters: DeadLetters, topic: str, count: int, replayed: set[DeadLetter]) -> list[Letter]:
    """Return the newest dead letters of a topic, at least `count` if there are, and add what was replayed of them."""
    window = count
    while True:
        records = 0
        found = []
        async for record in letters.walk(topic, window):
            records += 1
            if note := noted(record):
                replayed.add(note)
            else:
                found.append(Letter.of(record))
        if len(found) >= count or records < window:
            return found
        window *= 2  # too many of them are notes


def _state(letter: Letter, statuses: dict[UUID, str], replayed: Collection[DeadLetter]) -> str:
    if letter.task:
        return f"task {statuses.get(letter.task, 'unknown')}"
    return "replayed" if letter.position in replayed else "open"


async def _statuses_or_complaint(tasks: Collection[UUID], url: str) -> dict[UUID, str]:
    try:
        return await _statuses(tasks, url)
    except ApiError as error:
        complain(f"the status of tasks is unknown: {error}")
        return {}


async def _statuses(tasks: Collection[UUID], url: str) -> dict[UUID, str]:
    room = asyncio.Semaphore(AT_ONCE)

    async def status(task: UUID) -> str:
        async with room:
            try:
                return str((await client.task(task))["status"])
            except ApiError as error:
                if error.code != "task_not_found":
                    raise
                return "deleted"

    async with Client(url) as client:
        return dict(zip(tasks, await asyncio.gather(*map(status, tasks)), strict=True))


@app.command()
def show(
    topic: TopicName,
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0)],
    data: Data = None,
) -> None:
    """Show a dead letter: its key, headers, error with stack, and value."""
    run(_show(DeadLetter(topic=topic, partition=partition, offset=offset), data))


async def _show(position: DeadLetter, data: Path | None) -> None:
    async with DeadLetters(kafka_settings(data)) as letters:
        record = await read(letters, position)
    console = Console(highlight=False, soft_wrap=True)
    for line in whole(record):
        console.print(line)


@app.command()
def replay(
    topic: Annotated[str | None, typer.Argument(help="Of one dead letter.")] = None,
    partition: Annotated[int | None, typer.Argument(min=0, help="Of one dead letter.")] = None,
    offset: Annotated[int | None, typer.Argument(min=0, help="Of one dead letter.")] = None,
    only: Annotated[str | None, typer.Option("--topic", help="Only this topic of dead letters.")] = None,
    data: Data = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Replay one dead letter, all of a topic, or, with nothing given, all there are.

    The failed parts of tasks run again, each task once; one that has not failed any more is told and left alone. Other
    records are published again to where they came from, once; by its position one can be published as often as you
    like. Exit status 1 where a replay was not possible.
    """
    if topic is None:
        topics = [_topic(only)] if only else list(ORIGINS)
        failures = run(_replay_all(topics, data, url))
    elif partition is None or offset is None or only is not None:
        raise typer.BadParameter("give TOPIC PARTITION OFFSET for one, --topic TOPIC for those of a topic, or nothing")
    else:
        failures = run(_replay_one(DeadLetter(topic=_topic(topic), partition=partition, offset=offset), data, url))
    if failures:
        raise typer.Exit(1)


async def _replay_all(topics: Iterable[str], data: Path | None, url: str) -> int:
    return await replay_all(topics, kafka_settings(data), url)


async def _replay_one(position: DeadLetter, data: Path | None, url: str) -> int:
    return await replay_one(position, kafka_settings(data), url)


def kafka_settings(data: Path | None) -> KafkaSettings:
    """Return where Kafka is.

    Raises
    ------
    CommandError
        In this data folder no stack has ever run.
    """
    settings = KafkaSettings()
    if data is None and "kafka_bootstrap_servers" in settings.model_fields_set:
        return settings
    port = DataFolder(data or DEFAULT_DATA).last_ports().get("kafka")
    if port is None and data is not None:
        raise CommandError(f"no `paperlane up` has run in {data}: name its folder, or set KAFKA_BOOTSTRAP_SERVERS")
    return settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{port}"}) if port else settings
