"""Freshness: how long after a unit of work is finished a watching client sees it counted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from bench.corpus import Corpus
from bench.journey import Journey, travel_together
from bench.stats import Spread, spread, typical
from cli.client import Client

ROUNDS = 5

UNITS = """
    SELECT task_id, stage, finished_at FROM task_units
    WHERE task_id = ANY($1) AND stage IN ('parse', 'embed', 'index') ORDER BY finished_at
"""


class Lag(BaseModel):
    """Medians over the rounds.

    Attributes
    ----------
    units
        How much was finished: shards parsed, parts embedded, parts indexed.
    events
        How many events the clients had.
    lag
        From the end of a unit to the first event that counts it.
    """

    documents: int
    pages: int
    units: int
    events: int
    lag: Spread


class Freshness(BaseModel):
    """One document on an idle stack, and many at once."""

    rounds: int
    idle: Lag
    load: Lag


async def measure_freshness(url: str, database_url: str, corpus: Corpus) -> Freshness:
    """Measure alternately, after a document that warms everything up."""
    one, many = [corpus.handbook()], corpus.small()
    idle: list[Lag] = []
    load: list[Lag] = []
    database = await asyncpg.connect(database_url)
    try:
        async with Client(url) as client:
            await _round(client, database, corpus.fresh(one))
            for _ in range(ROUNDS):
                idle.append(await _round(client, database, corpus.fresh(one)))
                load.append(await _round(client, database, corpus.fresh(many)))
    finally:
        await database.close()
    return Freshness(rounds=ROUNDS, idle=_typical(idle), load=_typical(load))


async def _round(client: Client, database: asyncpg.Connection, paths: Sequence[Path]) -> Lag:
    journeys = await travel_together(client, paths, at_once=len(paths))
    lags: list[float] = []
    units = await database.fetch(UNITS, [UUID(journey.task_id) for journey in journeys])
    for journey in journeys:
        its_units = [unit for unit in units if str(unit["task_id"]) == journey.task_id]
        lags.extend(_lags(journey, its_units))
    return Lag(
        documents=len(journeys),
        pages=sum(journey.pages for journey in journeys),
        units=len(units),
        events=sum(len(journey.events) for journey in journeys),
        lag=spread(lags),
    )


def _lags(journey: Journey, units: Sequence[asyncpg.Record]) -> Iterator[float]:
    """Match a stage's n-th unit to end with the first event that counts n of them.

    An event says how many are counted, not which. Units that overtook each other on their way are matched crosswise
    then, which leaves the sum of their lags as it is.
    """
    for stage in ("parse", "embed", "index"):
        ends = [unit["finished_at"] for unit in units if unit["stage"] == stage]
        events = (seen for seen in journey.events if "stages" in seen.state)
        event = next(events)
        for number, end in enumerate(ends, 1):
            while event.state["stages"][stage]["done"] < number:
                event = next(events)
            yield (event.at - end).total_seconds()


def _typical(rounds: Sequence[Lag]) -> Lag:
    middle = sorted(rounds, key=lambda one: one.events)[len(rounds) // 2]
    return middle.model_copy(update={"lag": typical(one.lag for one in rounds)})
