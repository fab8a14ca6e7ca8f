"""The numbers of `/stats`."""

from collections.abc import Mapping
from datetime import timedelta

from pydantic import BaseModel, Field

from services.gateway.tasks import Tasks
from shared.clock import Clock, now
from shared.database.durations import Durations, read_durations
from shared.database.pool import Pool, acquire
from shared.errors import DependencyUnavailableError
from shared.events import Stage
from shared.stages import StageState, StageWatch
from shared.tasks import TaskStatus

RATE_WINDOW = timedelta(minutes=1)

SAMPLE = 1000
"""Latest units from which a stage's durations are told: enough for a stable p95, few enough to sort at once."""

LATEST = """
    SELECT s.stage,
        (SELECT count(*) FROM task_units u WHERE u.step = s.stage AND u.state = 'done' AND u.finished_at > $2) AS rate,
        d.quantiles
    FROM unnest($1::text[]) AS s(stage), LATERAL (
        SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY seconds) AS quantiles FROM (
            SELECT extract(epoch FROM u.finished_at - u.started_at)::float8 AS seconds FROM task_units u
            WHERE u.step = s.stage AND u.state = 'done' ORDER BY u.finished_at DESC LIMIT $3
        ) latest
    ) d
"""


class StageStats(BaseModel):
    """One stage; units are shards of pages for parse, parts of chunks for the others."""

    waiting: int | None = Field(description="records that wait (consumer lag); null while the broker is away")
    members: int | None = Field(description="consumers at work; null while the broker is away")
    done: int = Field(description="units done since the beginning")
    rate: int = Field(description="units done in the last minute")
    p50_seconds: float | None = Field(description=f"median duration of the latest {SAMPLE} units")
    p95_seconds: float | None = Field(description=f"95th percentile of the latest {SAMPLE} units")


class Stats(BaseModel):
    """How the whole service does."""

    tasks: dict[TaskStatus, int] = Field(description="tasks by status")
    stages: dict[Stage, StageStats]


async def read_stats(pool: Pool, tasks: Tasks, watch: StageWatch, owner: str, clock: Clock = now) -> Stats:
    """Read the numbers from PostgreSQL and, while it is there, from the broker.

    Raises
    ------
    DependencyUnavailableError
        The database is away.
    """
    counts = await tasks.count_by_status(owner)
    async with acquire(pool) as connection:
        records = await connection.fetch(LATEST, list(Stage), clock() - RATE_WINDOW, SAMPLE)
        durations = await read_durations(connection, "stage")
    states: Mapping[str, StageState]
    try:
        states = await watch.observe()
    except DependencyUnavailableError:
        states = {}
    latest = {record["stage"]: (record["rate"], record["quantiles"]) for record in records}
    return Stats(
        tasks=counts,
        stages={stage: _stage(states.get(stage), durations.get(stage), *latest[stage]) for stage in Stage},
    )


def _stage(
    state: StageState | None, durations: Durations | None, rate: int, quantiles: list[float] | None
) -> StageStats:
    return StageStats(
        waiting=state and state.waiting,
        members=state and state.members,
        done=durations.total if durations else 0,
        rate=rate,
        p50_seconds=quantiles and quantiles[0],
        p95_seconds=quantiles and quantiles[1],
    )
