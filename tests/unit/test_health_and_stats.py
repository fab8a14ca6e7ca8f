from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, Self, cast

import pytest
from typing_extensions import override

from services.gateway.health import Component, Health, check_health
from services.gateway.stats import StageStats, _stage
from shared.blobs import BlobStore
from shared.database.durations import BUCKETS, Durations
from shared.database.pool import Pool
from shared.errors import DependencyUnavailableError
from shared.events import Stage
from shared.settings import BlobSettings, KafkaSettings
from shared.stages import FRESH, GROUPS, STUCK_AFTER, UNATTENDED_AFTER, GroupState, StageState, StageWatch
from shared.topics import TRACK
from tests.support.builders import NOON

STAGES = [*Stage, TRACK]


class Watch(StageWatch):
    """A watch whose broker is what a test says; `seen` are (members, waiting, committed) by topic."""

    def __init__(self) -> None:
        self.time = NOON
        super().__init__(KafkaSettings(), clock=lambda: self.time)
        self.seen = {topic.name: (1, 0, 0) for topic, _ in GROUPS}
        self.looks = 0
        self.away = False

    @override
    async def _look(self, at: datetime) -> None:
        self.looks += 1
        if self.away:
            await super()._look(at)
        for topic, _ in GROUPS:
            self._groups[topic.name] = self._state(topic, *self.seen[topic.name], at)
        self._observed_at = at

    @override
    async def _connected(self) -> NoReturn:
        raise ConnectionRefusedError("connection refused")

    def at(self, later: timedelta) -> "Watch":
        self.time = NOON + later
        return self


class Database:
    """A pool whose server is there or not."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away

    def acquire(self, *, timeout: float) -> Self:
        assert timeout > 0
        return self

    async def __aenter__(self) -> Self:
        if self.away:
            raise ConnectionRefusedError("connection refused")
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def execute(self, query: str) -> str:
        return query


async def health(folder: Path, watch: Watch, *, database_away: bool = False) -> Health:
    blobs = BlobStore(BlobSettings(blob_url=f"file://{folder}"))
    return await check_health(cast("Pool", Database(away=database_away)), blobs, watch)


def component(health: Health, name: str) -> Component:
    [found] = [component for component in health.components if component.name == name]
    return found


async def test_all_is_well_where_every_component_is(tmp_path: Path) -> None:
    answer = await health(tmp_path, Watch())
    assert answer.ok
    assert [component.name for component in answer.components] == ["database", "blobs", "broker", *STAGES]
    assert component(answer, "embed").detail == "1 consumers, 0 records waiting"


async def test_a_database_that_is_away_is_named(tmp_path: Path) -> None:
    answer = await health(tmp_path, Watch(), database_away=True)
    assert not answer.ok
    assert [each.name for each in answer.components if not each.ok] == ["database"]
    assert component(answer, "database").detail == "does not answer"


async def test_a_broker_that_is_away_stands_for_the_stages_that_nobody_can_see(tmp_path: Path) -> None:
    watch = Watch()
    watch.away = True
    answer = await health(tmp_path, watch)
    assert not answer.ok
    assert [each.name for each in answer.components] == ["database", "blobs", "broker"]
    assert component(answer, "broker").detail.startswith("the Kafka broker does not answer: ")


async def test_a_stage_without_consumers_is_not_well_and_says_what_waits(tmp_path: Path) -> None:
    watch = Watch()
    watch.seen["chunks.extracted"] = (0, 7, 3)
    answer = await health(tmp_path, watch)
    assert [each.name for each in answer.components if not each.ok] == ["embed"]
    assert component(answer, "embed").detail == "no consumer is running; 7 records waiting"


async def test_a_stage_that_stands_still_is_not_well(tmp_path: Path) -> None:
    watch = Watch()
    watch.seen["chunks.extracted"] = (2, 7, 3)
    assert (await health(tmp_path, watch)).ok
    answer = await health(tmp_path, watch.at(STUCK_AFTER + FRESH))
    assert component(answer, "embed").detail == "stands still: 2 consumers, 7 records waiting"
    assert not answer.ok


async def test_a_stage_of_two_groups_is_as_strong_as_its_weaker_one() -> None:
    watch = Watch()
    watch.seen |= {"documents.submitted": (3, 10, 0), "pages.requested": (1, 5, 0)}
    assert (await watch.observe())["parse"] == StageState(members=1, waiting=15)


async def test_a_stage_is_stuck_once_its_work_has_waited_too_long_without_a_commit() -> None:
    watch = Watch()
    watch.seen["chunks.extracted"] = (1, 7, 3)
    stuck = [(await watch.at(later).observe())["embed"].stuck for later in (timedelta(0), STUCK_AFTER)]
    assert stuck == [False, False]
    assert (await watch.at(STUCK_AFTER + FRESH).observe())["embed"].stuck


async def test_a_stage_that_commits_is_not_stuck_however_much_waits() -> None:
    watch = Watch()
    for minute in range(30):
        watch.seen["chunks.extracted"] = (1, 1000, minute)
        assert not (await watch.at(timedelta(minutes=minute)).observe())["embed"].stuck


async def test_work_that_comes_after_a_long_silence_is_not_stuck_at_once() -> None:
    watch = Watch()
    await watch.observe()
    await watch.at(timedelta(days=1)).observe()
    watch.seen["chunks.extracted"] = (1, 1, 0)
    assert not (await watch.at(timedelta(days=1) + FRESH).observe())["embed"].stuck


async def test_a_stage_without_consumers_is_stuck_once_its_work_has_waited_for_longer_than_a_restart_takes() -> None:
    watch = Watch()
    watch.seen["chunks.extracted"] = (0, 7, 3)
    for later in (timedelta(0), UNATTENDED_AFTER):
        assert not (await watch.at(later).observe())["embed"].stuck
    watch.seen["chunks.extracted"] = (1, 7, 3)
    assert not (await watch.at(UNATTENDED_AFTER + FRESH).observe())["embed"].stuck
    watch.seen["chunks.extracted"] = (0, 7, 3)
    assert not (await watch.at(UNATTENDED_AFTER * 2).observe())["embed"].stuck
    gone = await watch.at(UNATTENDED_AFTER * 2 + FRESH * 2).observe()
    assert gone["embed"] == StageState(members=0, waiting=7, still_since=NOON)
    watch.seen["chunks.extracted"] = (2, 7, 3)
    assert (await watch.at(UNATTENDED_AFTER * 2 + FRESH * 3).observe())["embed"].stuck  # until they have done something
    watch.seen["chunks.extracted"] = (2, 6, 4)
    assert not (await watch.at(UNATTENDED_AFTER * 2 + FRESH * 4).observe())["embed"].stuck


async def test_a_stage_without_consumers_is_not_stuck_while_it_has_no_work() -> None:
    watch = Watch()
    watch.seen["chunks.extracted"] = (0, 0, 3)
    for later in (timedelta(0), timedelta(days=1)):
        assert not (await watch.at(later).observe())["embed"].stuck
    watch.seen["chunks.extracted"] = (0, 1, 3)
    assert not (await watch.at(timedelta(days=1) + FRESH).observe())["embed"].stuck


async def test_the_broker_is_not_asked_again_within_a_second() -> None:
    watch = Watch()
    for later in (timedelta(0), FRESH / 2, FRESH - timedelta(microseconds=1)):
        await watch.at(later).observe()
    assert watch.looks == 1
    await watch.at(FRESH).observe()
    assert watch.looks == 2


async def test_a_failed_look_is_no_observation_but_is_not_repeated_at_once_either() -> None:
    watch = Watch()
    watch.away = True
    for later in (timedelta(0), FRESH / 2):
        with pytest.raises(DependencyUnavailableError, match="connection refused"):
            await watch.at(later).observe()
    assert watch.looks == 1
    watch.away = False
    assert await watch.at(FRESH).observe()


STATE = StageState(members=2, waiting=7)
HISTOGRAM = Durations([1] * (len(BUCKETS) + 1), 12.5)


@pytest.mark.parametrize(
    ("state", "durations", "rate", "quantiles", "shown"),
    [
        (
            STATE,
            HISTOGRAM,
            5,
            [0.5, 2.0],
            {"waiting": 7, "members": 2, "done": 16, "rate": 5, "p50_seconds": 0.5, "p95_seconds": 2.0},
        ),
        (
            None,
            None,
            0,
            None,
            {"waiting": None, "members": None, "done": 0, "rate": 0, "p50_seconds": None, "p95_seconds": None},
        ),
    ],
    ids=["all there", "nothing known"],
)
def test_a_stages_numbers_are_null_where_nobody_knows_them(
    state: StageState | None,
    durations: Durations | None,
    rate: int,
    quantiles: list[float] | None,
    shown: Mapping[str, Any],
) -> None:
    assert _stage(state, durations, rate, quantiles) == StageStats(**shown)


def test_a_group_that_was_never_seen_has_moved_just_now() -> None:
    state = Watch()._state(GROUPS[0][0], members=1, waiting=5, committed=0, at=NOON)
    assert state == GroupState(members=1, waiting=5, committed=0, moved_at=NOON, attended_at=NOON, still=False)
