"""Latency: from the upload of a page on an idle stack until its client knows that it is searchable."""

import asyncio
import random
from collections.abc import Mapping
from datetime import datetime, timedelta

import httpx
from pydantic import BaseModel

from bench.corpus import Corpus
from bench.journey import Journey, travel
from bench.stats import Spread, spread, typical
from cli.client import Client

ROUNDS = 3
UPLOADS = 60
WARM_UP = 10

PAUSES = (timedelta(seconds=0.1), timedelta(seconds=0.5))
"""Bounds of the random pause between two uploads, so that no rhythm of polling can help or hurt."""

HOPS = (
    "request to gateway has the file",
    "gateway to parser",
    "parse",
    "parser to embedder",
    "embed",
    "embedder to indexer",
    "index",
    "indexer to tracker",
    "tracker's fold to client",
)
"""Between the moments of `_moments`, in their order."""


class Latency(BaseModel):
    """Medians over the rounds.

    Attributes
    ----------
    accepted
        Until the answer to the upload.
    total
        Until the event `complete`.
    hops
        Where the time of `total` went.
    """

    rounds: int
    uploads: int
    accepted: Spread
    total: Spread
    hops: dict[str, Spread]


async def measure_latency(url: str, corpus: Corpus) -> Latency:
    """Measure on a stack that does nothing else."""
    pauses = random.Random(1)
    async with Client(url) as client, httpx.AsyncClient(base_url=url) as api:
        await _round(client, api, corpus, pauses, WARM_UP)
        rounds = [await _round(client, api, corpus, pauses, UPLOADS) for _ in range(ROUNDS)]
    return Latency(
        rounds=ROUNDS,
        uploads=UPLOADS,
        accepted=typical(one.accepted for one in rounds),
        total=typical(one.total for one in rounds),
        hops={hop: typical(one.hops[hop] for one in rounds) for hop in HOPS},
    )


async def _round(
    client: Client, api: httpx.AsyncClient, corpus: Corpus, pauses: random.Random, uploads: int
) -> Latency:
    journeys: list[Journey] = []
    hops: dict[str, list[float]] = {hop: [] for hop in HOPS}
    for path in corpus.fresh([corpus.one_page()] * uploads):
        await asyncio.sleep(pauses.uniform(*(bound.total_seconds() for bound in PAUSES)))
        journey = await travel(client, path)
        journeys.append(journey)
        task = (await api.get(f"/tasks/{journey.task_id}")).raise_for_status().json()
        moments = _moments(journey, task)
        for hop, before, after in zip(HOPS, moments, moments[1:], strict=False):
            hops[hop].append((after - before).total_seconds())
    return Latency(
        rounds=1,
        uploads=uploads,
        accepted=spread([(one.accepted - one.posted).total_seconds() for one in journeys]),
        total=spread([(one.completed - one.posted).total_seconds() for one in journeys]),
        hops={hop: spread(seconds) for hop, seconds in hops.items()},
    )


def _moments(journey: Journey, task: Mapping[str, dict[str, dict[str, str]]]) -> list[datetime]:
    """Return when what happened; client and services share one clock."""
    stages = [task["stages"][stage] for stage in ("parse", "embed", "index")]
    told = [
        task["created_at"],
        *(stage[end] for stage in stages for end in ("started", "finished")),
        task["updated_at"],
    ]
    return [journey.posted, *(datetime.fromisoformat(str(moment)) for moment in told), journey.completed]
