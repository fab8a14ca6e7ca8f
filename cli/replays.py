"""Replays dead letters: through their tasks, or, where no task stands for one, by publishing it again."""

from collections.abc import Collection, Iterable
from datetime import timedelta
from uuid import UUID

from aiokafka.errors import KafkaError
from rich.console import Console

from cli.client import Client
from cli.control import each
from cli.letters import where
from cli.running import CommandError
from shared.broker import Record
from shared.dead_letters import ORIGINS, DeadLetters, noted, replayed_alone, task_of
from shared.events import DeadLetter
from shared.kafka import Publisher
from shared.settings import KafkaSettings

OVER = frozenset({"task_conflict", "task_not_found"})
"""Why a task is not replayed that has not failed any more, which is no failure of the replay."""


async def replay_one(position: DeadLetter, settings: KafkaSettings, url: str) -> int:
    """Replay one dead letter, and return 1 if that was not possible."""
    async with DeadLetters(settings) as letters:
        task = task_of(await read(letters, position))
    return await _replay_tasks([task], url) if task else await _publish_again([position], settings)


async def replay_all(topics: Iterable[str], settings: KafkaSettings, url: str) -> int:
    """Replay what is in these topics now, and return how many tasks and records could not be.

    Held in memory are the ids of tasks and the positions of other records, no records.
    """
    tasks: dict[UUID, None] = {}
    others: dict[DeadLetter, None] = {}
    async with DeadLetters(settings) as letters:
        for topic in topics:
            async for record in letters.walk(topic):
                if note := noted(record):
                    others.pop(note, None)
                elif task := task_of(record):
                    tasks[task] = None
                else:
                    others[DeadLetter(topic=topic, partition=record.partition, offset=record.offset)] = None
    return await _publish_again(others, settings) + await _replay_tasks(tasks, url)


async def read(letters: DeadLetters, position: DeadLetter) -> Record:
    """Return a dead letter.

    Raises
    ------
    CommandError
        There is none.
    """
    record = await letters.read(position)
    if record is None or noted(record):
        raise CommandError(f"there is no dead letter {where(position)}; `paperlane dlq list` shows those there are")
    return record


async def _replay_tasks(tasks: Collection[UUID], url: str) -> int:
    async with Client(url) as client:
        refusals = await each(tasks, client.replay, "replayed")
    Console().print(f"{len(tasks) - len(refusals)} of {len(tasks)} tasks replayed", style="dim")
    return sum(refusal.code not in OVER for refusal in refusals)


async def _publish_again(positions: Collection[DeadLetter], settings: KafkaSettings) -> int:
    console, failures, publisher = Console(highlight=False, soft_wrap=True, markup=False), 0, Publisher(settings)
    try:
        await publisher.start(patience=timedelta(0))
        async with DeadLetters(settings) as letters:
            for position in positions:
                try:
                    await publisher.publish(replayed_alone(await read(letters, position)))
                    console.print(f"{where(position)}: published again to {ORIGINS[position.topic].name}")
                except (CommandError, KafkaError) as error:  # deleted meanwhile, or larger than its topic now takes
                    failures += 1
                    console.print(f"{where(position)}: {error}", style="red")
    finally:
        await publisher.aclose()
    console.print(f"{len(positions) - failures} of {len(positions)} other records published again", style="dim")
    return failures
