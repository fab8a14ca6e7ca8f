"""The answer to `/metrics`: this process's own metrics, and what PostgreSQL and Kafka know of all processes.

The latter are the same on every gateway, so a query over several of them takes the maximum, not the sum.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from services.gateway.tasks import Tasks
from shared.database.durations import BUCKETS, Durations, read_durations
from shared.database.pool import Pool, acquire
from shared.errors import DependencyUnavailableError
from shared.stages import StageState, StageWatch
from shared.tasks import TaskStatus


async def expose(pool: Pool, tasks: Tasks, watch: StageWatch) -> bytes:
    """Return all metrics in Prometheus's text format; what cannot be read now is left out."""
    metrics: list[Metric] = []
    try:
        counts = await tasks.count_by_status()
        async with acquire(pool) as connection:
            ended = await read_durations(connection, "task")
            units = await read_durations(connection, "stage")
        metrics += [*_tasks(counts, ended), *_units(units)]
        metrics += _stages(await watch.observe())
    except DependencyUnavailableError:
        pass  # the absence of the series is the message, and /health says which part is away
    return generate_latest(REGISTRY) + generate_latest(_Snapshot(metrics))


class _Snapshot(CollectorRegistry):
    """A registry of metrics that are already collected."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self.register(_Collected(list(metrics)))


class _Collected:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _tasks(counts: Mapping[TaskStatus, int], ended: Mapping[str, Durations]) -> Iterator[Metric]:
    total = CounterMetricFamily("task", "Tasks that ended.", labels=("task_type", "status"))
    duration = HistogramMetricFamily("task_duration_seconds", "From upload to end.", labels=("task_type",))
    by_type: dict[str, list[Durations]] = {}
    for label, durations in ended.items():
        task_type, _, status = label.partition("/")
        total.add_metric((task_type, status), durations.total)
        by_type.setdefault(task_type, []).append(durations)
    for task_type, parts in by_type.items():
        counted = [sum(numbers) for numbers in zip(*(part.counts for part in parts), strict=True)]
        _add(duration, task_type, Durations(counted, sum(part.seconds for part in parts)))
    yield total
    yield duration
    yield GaugeMetricFamily("task_running", "Tasks at work.", value=counts[TaskStatus.RUNNING])
    yield GaugeMetricFamily("task_pending", "Tasks that wait for a parser.", value=counts[TaskStatus.PENDING])


def _units(stages: Mapping[str, Durations]) -> Iterator[Metric]:
    histogram = HistogramMetricFamily(
        "paperlane_stage_duration_seconds", "From a unit's start to its end.", labels=("stage",)
    )
    for stage, durations in stages.items():
        _add(histogram, stage, durations)
    yield histogram


def _stages(states: Mapping[str, StageState]) -> Iterator[Metric]:
    lag = GaugeMetricFamily("paperlane_stage_lag_records", "Records that wait.", labels=("stage",))
    members = GaugeMetricFamily("paperlane_stage_members", "Consumers at work.", labels=("stage",))
    for stage, state in states.items():
        lag.add_metric((stage,), state.waiting)
        members.add_metric((stage,), state.members)
    yield lag
    yield members


def _add(family: HistogramMetricFamily, label: str, durations: Durations) -> None:
    bounds = [*map(str, BUCKETS), "+Inf"]
    cumulative = accumulate(durations.counts)
    family.add_metric((label,), list(zip(bounds, cumulative, strict=True)), durations.seconds)
