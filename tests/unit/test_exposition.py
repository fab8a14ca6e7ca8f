from typing import cast

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from typing_extensions import override

from services.gateway.exposition import _Snapshot, _stages, _tasks, _units, expose
from shared.database.durations import BUCKETS, Durations
from shared.database.pool import Pool
from shared.errors import DependencyUnavailableError
from shared.settings import KafkaSettings
from shared.stages import StageState, StageWatch
from shared.tasks import TaskStatus
from tests.support.builders import TasksInMemory

COUNTS = {
    TaskStatus.PENDING: 3,
    TaskStatus.RUNNING: 2,
    TaskStatus.COMPLETED: 40,
    TaskStatus.FAILED: 1,
    TaskStatus.CANCELED: 0,
}


def durations(*buckets: int, seconds: float) -> Durations:
    """Return a histogram with one duration in each of the buckets."""
    counts = [0] * (len(BUCKETS) + 1)
    for bucket in buckets:
        counts[bucket] += 1
    return Durations(counts, seconds)


def samples(text: bytes) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float:
    [sample] = [each for each in found if each.name == name and each.labels == labels]
    return sample.value


@pytest.fixture
def task_samples() -> list[Sample]:
    ended = {
        "document_process/completed": durations(0, 0, len(BUCKETS), seconds=7200.5),
        "document_process/failed": durations(3, seconds=0.07),
    }
    return samples(generate_latest(_Snapshot(_tasks(COUNTS, ended))))


def test_ended_tasks_are_counted_by_type_and_status(task_samples: list[Sample]) -> None:
    labels = {"task_type": "document_process"}
    assert value(task_samples, "task_total", status="completed", **labels) == 3
    assert value(task_samples, "task_total", status="failed", **labels) == 1


def test_tasks_at_work_and_waiting_are_gauges(task_samples: list[Sample]) -> None:
    assert value(task_samples, "task_running") == 2
    assert value(task_samples, "task_pending") == 3


def test_durations_are_one_cumulative_histogram_for_all_statuses(task_samples: list[Sample]) -> None:
    labels = {"task_type": "document_process"}
    buckets = [value(task_samples, "task_duration_seconds_bucket", le=str(bound), **labels) for bound in BUCKETS]
    assert buckets == [2, 2, 2, *[3] * (len(BUCKETS) - 3)]
    assert value(task_samples, "task_duration_seconds_bucket", le="+Inf", **labels) == 4
    assert value(task_samples, "task_duration_seconds_count", **labels) == 4
    assert value(task_samples, "task_duration_seconds_sum", **labels) == pytest.approx(7200.57)


def test_before_the_first_task_has_ended_there_are_only_the_gauges() -> None:
    found = samples(generate_latest(_Snapshot(_tasks(COUNTS, {}))))
    assert {sample.name for sample in found} == {"task_running", "task_pending"}


def test_units_are_a_histogram_by_stage() -> None:
    found = samples(generate_latest(_Snapshot(_units({"embed": durations(1, 1, seconds=0.04)}))))
    assert value(found, "paperlane_stage_duration_seconds_bucket", stage="embed", le="0.01") == 0
    assert value(found, "paperlane_stage_duration_seconds_bucket", stage="embed", le="0.025") == 2
    assert value(found, "paperlane_stage_duration_seconds_sum", stage="embed") == 0.04


def test_stages_show_what_waits_and_who_works() -> None:
    states = {"embed": StageState(members=2, waiting=7)}
    found = samples(generate_latest(_Snapshot(_stages(states))))
    assert value(found, "paperlane_stage_lag_records", stage="embed") == 7
    assert value(found, "paperlane_stage_members", stage="embed") == 2


async def test_without_a_database_the_processs_own_metrics_are_still_there() -> None:
    class Away(TasksInMemory):
        @override
        async def count_by_status(self, owner: str | None = None) -> dict[TaskStatus, int]:
            raise DependencyUnavailableError("the database does not answer")

    body = await expose(cast("Pool", None), Away(), StageWatch(KafkaSettings()))
    names = {sample.name for sample in samples(body)}
    assert "python_info" in names
    assert not {name for name in names if name.startswith(("task_", "paperlane_stage_duration", "paperlane_stage_lag"))}
