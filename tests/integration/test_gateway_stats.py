from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from deploy.local import ports
from services.gateway.stats import RATE_WINDOW, read_stats
from services.gateway.tasks import Tasks
from services.tracker.store import TaskStore
from shared import stages
from shared.broker import Record
from shared.database.pool import Pool
from shared.errors import DependencyUnavailableError
from shared.events import Stage
from shared.settings import KafkaSettings
from shared.stages import FRESH, STUCK_AFTER, StageState, StageWatch
from shared.tasks import TaskRow, TaskStatus
from shared.topics import CHUNKS_EMBEDDED, DOCUMENTS_COMPLETED, TASK_CONTROL, TOPICS
from tests.support.eventually import eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.stack_thread import StackThread
from tests.support.task_events import START, embedded, extracted, log_of, new_task

SHORT = timedelta(milliseconds=200)


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def passes(self, span: timedelta) -> None:
        self.now += span


async def ignore(records: tuple[Record, ...]) -> None:
    """Take records as a stage would that has nothing to do."""


async def hold(records: tuple[Record, ...]) -> None:
    """Take records as a stage would that cannot work."""
    raise RuntimeError("as the test wants it")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def watch(lab: KafkaLab, time: Time) -> AsyncIterator[StageWatch]:
    """A watch on groups that have worked off everything and have no members."""
    for topic in TOPICS:
        if topic.group:
            await lab.catch_up(topic)
    watch = StageWatch(lab.settings, time)
    yield watch
    await watch.aclose()


async def look(watch: StageWatch, time: Time, stage: str) -> StageState:
    """Look again, rather than get what was seen just now."""
    time.passes(FRESH)
    return (await watch.observe())[stage]


async def answers(watch: StageWatch, time: Time, before: StageState) -> None:
    """Check that the broker answers again, and as before."""
    try:
        assert await look(watch, time, Stage.INDEX) == before
    except DependencyUnavailableError as error:
        raise AssertionError from error


# --- numbers of PostgreSQL ---


async def insert(tasks: Tasks, *, owner: str = "owner", status: str = "pending") -> TaskRow:
    task = replace(new_task(owner), status=status)
    await tasks.insert(task)
    return task


async def test_units_are_counted_by_stage_and_tasks_by_status_and_owner(
    tasks: Tasks, pool: Pool, watch: StageWatch
) -> None:
    first, second = await insert(tasks), await insert(tasks, owner="other")
    await insert(tasks)
    store = TaskStore(pool)
    await store.fold(log_of(first, [(2, 2), (1, 1)]))
    await store.fold(log_of(second, [(1, 1)])[:3])
    stats = await read_stats(pool, tasks, watch, "owner", lambda: START)
    assert stats.tasks == {**dict.fromkeys(TaskStatus, 0), TaskStatus.COMPLETED: 1, TaskStatus.PENDING: 1}
    assert {stage: numbers.done for stage, numbers in stats.stages.items()} == {
        Stage.PARSE: 3,
        Stage.EMBED: 4,
        Stage.INDEX: 3,
    }


async def test_the_rate_is_what_ended_in_the_last_minute(tasks: Tasks, pool: Pool, watch: StageWatch) -> None:
    task = await insert(tasks)
    ends = [START + timedelta(seconds=20 * n) for n in range(6)]
    await TaskStore(pool).fold([embedded(task, 0, n, 1, end, took=timedelta()) for n, end in enumerate(ends)])
    clock = Time()
    for clock.now, rate in ((ends[-1], 3), (ends[-1] + RATE_WINDOW / 3, 2), (ends[-1] + RATE_WINDOW, 0)):
        stats = await read_stats(pool, tasks, watch, "owner", clock)
        assert stats.stages[Stage.EMBED].rate == rate
        assert stats.stages[Stage.EMBED].done == 6
    assert stats.stages[Stage.INDEX].rate == 0


async def test_durations_are_told_as_median_and_95th_percentile(tasks: Tasks, pool: Pool, watch: StageWatch) -> None:
    task = await insert(tasks)
    await TaskStore(pool).fold(
        [embedded(task, 0, n, 1, START, took=timedelta(milliseconds=100 * n)) for n in range(101)]
    )
    stats = await read_stats(pool, tasks, watch, "owner", lambda: START)
    assert stats.stages[Stage.EMBED].p50_seconds == pytest.approx(5.0)
    assert stats.stages[Stage.EMBED].p95_seconds == pytest.approx(9.5)
    assert stats.stages[Stage.PARSE].p50_seconds is None
    assert stats.stages[Stage.PARSE].p95_seconds is None


async def test_without_a_broker_the_numbers_of_the_database_are_still_told(tasks: Tasks, pool: Pool) -> None:
    task = await insert(tasks)
    await TaskStore(pool).fold([extracted(task, 0, 1, 1, START)])
    away = StageWatch(KafkaSettings(kafka_bootstrap_servers=f"127.0.0.1:{ports.pick(1)[0]}"))
    stats = await read_stats(pool, tasks, away, "owner", lambda: START)
    assert {(numbers.waiting, numbers.members) for numbers in stats.stages.values()} == {(None, None)}
    assert stats.stages[Stage.PARSE].done == 1
    assert stats.tasks[TaskStatus.RUNNING] == 1


async def test_what_waits_at_the_broker_is_told(lab: KafkaLab, tasks: Tasks, pool: Pool, watch: StageWatch) -> None:
    await lab.send(CHUNKS_EMBEDDED.name, b"{}", key=b"k")
    async with lab.consuming(DOCUMENTS_COMPLETED, ignore):
        stats = await read_stats(pool, tasks, watch, "owner")
    assert (stats.stages[Stage.INDEX].waiting, stats.stages[Stage.INDEX].members) == (1, 0)
    assert (stats.stages[Stage.PARSE].waiting, stats.stages[Stage.EMBED].waiting) == (0, 0)


# --- the consumer groups ---


async def test_members_and_waiting_records_are_those_of_all_groups_of_a_stage(
    lab: KafkaLab, watch: StageWatch, time: Time
) -> None:
    assert await look(watch, time, Stage.INDEX) == StageState(members=0, waiting=0)
    for n in range(3):
        await lab.send(CHUNKS_EMBEDDED.name, b"{}", partition=n)
    await lab.send(DOCUMENTS_COMPLETED.name, b"{}", partition=0)
    assert await look(watch, time, Stage.INDEX) == StageState(members=0, waiting=4)
    async with AsyncExitStack() as running:
        for _ in range(2):
            await running.enter_async_context(lab.consuming(DOCUMENTS_COMPLETED, ignore))
            await running.enter_async_context(lab.consuming(TASK_CONTROL, ignore))
        await running.enter_async_context(lab.consuming(CHUNKS_EMBEDDED, hold))

        async def worked_off() -> None:
            assert await look(watch, time, Stage.INDEX) == StageState(members=1, waiting=3)

        await eventually(worked_off)
    assert (await look(watch, time, Stage.INDEX)).members == 0


async def test_a_fresh_observation_is_used_again(lab: KafkaLab, watch: StageWatch, time: Time) -> None:
    before = (await watch.observe())[Stage.INDEX]
    await lab.send(CHUNKS_EMBEDDED.name, b"{}", key=b"k")
    time.passes(FRESH / 2)
    assert (await watch.observe())[Stage.INDEX] == before
    time.passes(FRESH / 2)
    assert (await watch.observe())[Stage.INDEX].waiting == before.waiting + 1


async def test_work_that_waits_and_does_not_move_is_stuck_until_it_moves(
    lab: KafkaLab, watch: StageWatch, time: Time
) -> None:
    await look(watch, time, Stage.INDEX)
    time.passes(STUCK_AFTER * 2)
    assert not (await look(watch, time, Stage.INDEX)).stuck  # an idle group stands still, and nothing waits
    await lab.send(CHUNKS_EMBEDDED.name, b"{}", partition=0)
    assert (await look(watch, time, Stage.INDEX)).waiting == 1
    time.passes(STUCK_AFTER)
    assert (await look(watch, time, Stage.INDEX)).stuck
    await lab.catch_up(CHUNKS_EMBEDDED)
    await lab.send(CHUNKS_EMBEDDED.name, b"{}", partition=0)
    assert await look(watch, time, Stage.INDEX) == StageState(members=0, waiting=1)


async def test_work_that_came_after_a_long_silence_is_not_stuck_at_once(
    lab: KafkaLab, watch: StageWatch, time: Time
) -> None:
    await look(watch, time, Stage.INDEX)
    time.passes(STUCK_AFTER * 2)
    await lab.send(CHUNKS_EMBEDDED.name, b"{}", partition=0)
    assert await look(watch, time, Stage.INDEX) == StageState(members=0, waiting=1)


async def test_a_broker_that_does_not_answer_is_away_until_it_answers(
    watch: StageWatch, time: Time, stack_thread: StackThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await look(watch, time, Stage.INDEX)
    with stack_thread.frozen("kafka"), monkeypatch.context() as patch:
        patch.setattr(stages, "LOOK_TIMEOUT", SHORT)
        with pytest.raises(DependencyUnavailableError, match="the Kafka broker does not answer"):
            await look(watch, time, Stage.INDEX)

    await eventually(lambda: answers(watch, time, before))


async def test_connections_that_were_cut_are_made_again(watch: StageWatch, time: Time) -> None:
    before = await look(watch, time, Stage.INDEX)
    assert watch._clients is not None
    for client in (watch._clients[0]._client, watch._clients[1]._client):
        connections = list(client._conns.values())
        assert connections
        for connection in connections:
            connection._writer.transport.abort()

    await eventually(lambda: answers(watch, time, before))


async def test_without_any_broker_a_look_says_so_each_time(nothing_left_running: None, time: Time) -> None:
    away = StageWatch(KafkaSettings(kafka_bootstrap_servers=f"127.0.0.1:{ports.pick(1)[0]}"), time)
    for _ in range(2):
        with pytest.raises(DependencyUnavailableError, match="does not answer"):
            await away.observe()
