from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from services.tracker import backlog
from services.tracker.backlog import NOTHING, Offsets, consumers, oldest_waiting
from shared.errors import DependencyUnavailableError
from shared.settings import RETRY_DELAYS, KafkaSettings
from shared.topics import TOPICS, Topic
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.stack_thread import StackThread

SHORT = timedelta(seconds=3)
"""How long a look may take that must fail: above what one takes, below what a test waits."""

Declared = tuple[Topic, Topic, Topic]
"""Two topics of work, of which the second one has the next stage's, and the topic of reports."""


@pytest.fixture
async def declared(lab: KafkaLab, monkeypatch: pytest.MonkeyPatch) -> Declared:
    """Put topics that nobody else uses in place of the declared ones."""
    first, second, reports = [await lab.topic(partitions=2) for _ in range(3)]
    reports = replace(reports, retried=False)
    monkeypatch.setattr(backlog, "TOPICS", (first, second, reports))
    monkeypatch.setattr(backlog, "TASK_EVENTS", reports)
    await eventually(lambda: ready(lab.settings))
    return first, second, reports


async def ready(settings: KafkaSettings) -> None:
    """Wait for new topics, and on a new broker for what coordinates groups, which it makes for the first group."""
    try:
        await oldest_waiting(settings)
    except DependencyUnavailableError as error:
        raise AssertionError from error


def retry_topic(topic: Topic, delay: timedelta) -> Topic:
    return replace(topic, name=topic.retry(delay), group=topic.relay_group)


async def written(lab: KafkaLab, topic: Topic) -> list[datetime]:
    """Return when the records of a topic were written, the oldest first."""
    ends = await lab.ends(topic.name)
    records = await lab.read(topic.name, sum(ends.values()))
    return sorted(datetime.fromtimestamp(record.timestamp / 1000, UTC) for record in records)


async def refused(settings: KafkaSettings) -> None:
    with pytest.raises(DependencyUnavailableError, match="backlog cannot be told"):
        await before_long(oldest_waiting(settings))


def test_all_that_a_group_works_through_is_looked_at_with_its_retry_topics(settings: KafkaSettings) -> None:
    looked_at = consumers(settings)
    assert {looked_at.get(topic.name) for topic in TOPICS} == {topic.group for topic in TOPICS}
    retried = {topic.retry(delay): topic.relay_group for topic in TOPICS if topic.retried for delay in RETRY_DELAYS}
    assert retried.items() <= looked_at.items()
    assert len(looked_at) == len(retried) + len([topic for topic in TOPICS if topic.group])


async def test_in_empty_topics_nothing_waits(lab: KafkaLab, declared: Declared) -> None:
    assert await oldest_waiting(lab.settings) == NOTHING


async def test_what_is_finished_does_not_wait(lab: KafkaLab, declared: Declared) -> None:
    for topic in declared:
        await lab.send(topic.name, b"x")
        await lab.catch_up(topic)
    assert await oldest_waiting(lab.settings) == NOTHING


async def test_a_record_waits_until_its_group_has_committed_it(lab: KafkaLab, declared: Declared) -> None:
    work, *_ = declared
    await lab.send(work.name, b"x")
    assert await oldest_waiting(lab.settings) == (await written(lab, work))[0]
    await lab.catch_up(work)
    assert await oldest_waiting(lab.settings) == NOTHING


async def test_of_all_topics_and_partitions_the_oldest_record_counts(lab: KafkaLab, declared: Declared) -> None:
    first, second, _ = declared
    await lab.send(second.name, b"finished", partition=1)
    await lab.catch_up(second)
    await lab.send(second.name, b"oldest that waits", partition=1)
    for topic in (second, first):
        for partition in (0, 1):
            await lab.send(topic.name, b"younger", partition=partition)
    assert await oldest_waiting(lab.settings) == (await written(lab, second))[1]


@pytest.mark.parametrize("delay", RETRY_DELAYS)
async def test_a_record_that_waits_for_its_retry_waits(lab: KafkaLab, declared: Declared, delay: timedelta) -> None:
    waiting = retry_topic(declared[0], delay)
    await lab.send(waiting.name, b"x")
    assert await oldest_waiting(lab.settings) == (await written(lab, waiting))[0]
    await lab.catch_up(waiting)
    assert await oldest_waiting(lab.settings) == NOTHING


async def test_what_kafka_has_deleted_does_not_wait(lab: KafkaLab, declared: Declared) -> None:
    work, *_ = declared
    for n in range(3):
        await lab.send(work.name, b"%d" % n, partition=0)
    admin = AIOKafkaAdminClient(bootstrap_servers=lab.settings.kafka_bootstrap_servers)
    await admin.start()
    [partition, _] = await lab.partitions(work.name)
    at = await written(lab, work)
    await admin.delete_records({partition: RecordsToDelete(before_offset=2)})
    assert await oldest_waiting(lab.settings) == at[2]
    await admin.delete_records({partition: RecordsToDelete(before_offset=3)})
    await admin.close()
    assert await oldest_waiting(lab.settings) == NOTHING


async def test_a_topic_that_is_missing_is_not_taken_for_an_empty_one(
    lab: KafkaLab, declared: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "TOPICS", (*declared, replace(declared[0], name="never-made")))
    with pytest.raises(DependencyUnavailableError, match=r"never-made.*paperlane migrate"):
        await oldest_waiting(lab.settings)


async def test_nothing_is_told_before_all_reports_are_folded(
    lab: KafkaLab, declared: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, reports = declared
    for partition in (0, 1):
        await lab.send(reports.name, b"x", partition=partition)
    with monkeypatch.context() as patch:
        patch.setattr(backlog, "LOOK_TIMEOUT", SHORT)
        await refused(lab.settings)
    await lab.catch_up(reports)
    assert await oldest_waiting(lab.settings) == NOTHING


@pytest.mark.parametrize("turn", [1, 3, 5])
async def test_a_record_that_moves_on_during_a_look_is_seen(
    lab: KafkaLab, declared: Declared, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    first, second, _ = declared
    await lab.send(first.name, b"x")
    look, turns = backlog._committed, count(1)

    async def committed(admin: AIOKafkaAdminClient, group: str) -> Offsets:
        if next(turns) == turn:
            await lab.send(second.name, b"x")
            await lab.catch_up(first)
        return await look(admin, group)

    monkeypatch.setattr(backlog, "_committed", committed)
    [at] = await written(lab, first)
    assert at <= await oldest_waiting(lab.settings) < NOTHING
    assert next(turns) > turn


async def test_a_broker_that_does_not_answer_is_away(
    lab: KafkaLab, declared: Declared, stack_thread: StackThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.send(declared[0].name, b"x")
    monkeypatch.setattr(backlog, "LOOK_TIMEOUT", SHORT)
    with stack_thread.frozen("kafka"):
        await refused(lab.settings)
    await refused(lab.settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"}))
