"""Histograms of durations kept in PostgreSQL, which every replica adds to and any gateway shows."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from shared.database.pool import Connection
from shared.tasks import TaskRow

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds; the last bucket, beyond them all, has the number len(BUCKETS)."""

ADD = """
    INSERT INTO duration_counts (series, label, bucket, count, seconds)
    SELECT * FROM unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[], $5::float8[])
    ON CONFLICT (series, label, bucket) DO UPDATE
        SET count = duration_counts.count + excluded.count, seconds = duration_counts.seconds + excluded.seconds
"""

READ = "SELECT label, bucket, count, seconds FROM duration_counts WHERE series = $1"


@dataclass(frozen=True, slots=True)
class Observation:
    """One duration: of a `stage`'s unit, labelled by stage, or of a `task`, labelled by type and final status."""

    series: str
    label: str
    duration: timedelta


@dataclass(slots=True)
class Durations:
    """A histogram: counts by bucket (not cumulative, one more than `BUCKETS`), and the sum in seconds."""

    counts: list[int]
    seconds: float

    @property
    def total(self) -> int:
        """How many durations were observed."""
        return sum(self.counts)


def task_durations(tasks: Iterable[TaskRow]) -> Iterator[Observation]:
    """Yield how long each task that has ended took."""
    for task in tasks:
        if task.completed_at is not None:
            yield Observation("task", f"{task.task_type}/{task.status}", task.completed_at - task.created_at)


async def count_durations(connection: Connection, observations: Iterable[Observation]) -> None:
    """Add observations, in one order, so that two writers never wait for each other in a circle."""
    sums: defaultdict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0, 0.0])
    for observation in observations:
        seconds = max(observation.duration.total_seconds(), 0.0)  # clocks of two machines may disagree
        entry = sums[observation.series, observation.label, bisect_left(BUCKETS, seconds)]
        entry[0] += 1
        entry[1] += seconds
    if sums:
        rows = [(*key, int(count), seconds) for key, (count, seconds) in sorted(sums.items())]
        await connection.execute(ADD, *map(list, zip(*rows, strict=True)))


async def read_durations(connection: Connection, series: str) -> dict[str, Durations]:
    """Return the histograms of a series by label."""
    histograms: dict[str, Durations] = {}
    for record in await connection.fetch(READ, series):
        histogram = histograms.setdefault(record["label"], Durations([0] * (len(BUCKETS) + 1), 0.0))
        histogram.counts[record["bucket"]] = record["count"]
        histogram.seconds += record["seconds"]
    return histograms
