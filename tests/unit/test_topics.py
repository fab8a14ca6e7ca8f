import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
from aiokafka.admin import NewTopic
from aiokafka.errors import InvalidReplicationFactorError

from shared.errors import MAX_MESSAGE_CHARACTERS
from shared.events import Stage, Step
from shared.retry import MAX_STACK_CHARACTERS
from shared.settings import RETRY_DELAYS, KafkaSettings
from shared.topics import (
    CHUNKS_EXTRACTED,
    DEAD_LETTER_RETENTION,
    TASK_EVENTS,
    TASK_UPDATES,
    TOPICS,
    TRACK,
    UPDATES_RETENTION,
    WORK_RETENTION,
    _check,
    declared,
)

DEFAULT_LIMIT = 1024 * 1024
"""Bytes of a record that Kafka takes where a topic says nothing else."""

HEADERS = 4 * (MAX_STACK_CHARACTERS + MAX_MESSAGE_CHARACTERS) + 1000
"""Bytes that the headers of a failure can take: most of it are a stack and a message of up to 4 bytes a character."""

SETTINGS = KafkaSettings(topic_partitions=6, topic_replication_factor=3)


def new_topics(*delays: timedelta) -> dict[str, NewTopic]:
    settings = SETTINGS.model_copy(update={"retry_delays": delays or RETRY_DELAYS})
    return {topic.name: topic for topic in declared(settings)}


def retention(topic: NewTopic) -> timedelta:
    return timedelta(milliseconds=int(topic.topic_configs["retention.ms"]))


def test_side_topics_are_named_after_their_topic() -> None:
    assert CHUNKS_EXTRACTED.retry(timedelta(seconds=60)) == "chunks.extracted.retry.60s"
    assert CHUNKS_EXTRACTED.dead_letters == "chunks.extracted.dlq"


def test_every_retried_topic_has_a_topic_for_each_delay() -> None:
    names = set(new_topics())
    for topic in TOPICS:
        waiting = {name for name in names if name.startswith(f"{topic.name}.retry.")}
        assert waiting == ({topic.retry(delay) for delay in RETRY_DELAYS} if topic.retried else set())


def test_every_topic_that_a_group_works_through_has_dead_letters() -> None:
    names = set(new_topics())
    assert {topic.name for topic in TOPICS if topic.dead_letters in names} == {
        topic.name for topic in TOPICS if topic.group
    }


def test_other_delays_make_other_topics() -> None:
    assert "chunks.extracted.retry.5s" in new_topics(timedelta(seconds=5))
    assert "chunks.extracted.retry.60s" not in new_topics(timedelta(seconds=5))


@pytest.mark.parametrize("delays", [RETRY_DELAYS, (timedelta(seconds=60), timedelta(seconds=60))])
def test_names_are_unique_and_legal_in_kafka(delays: tuple[timedelta, ...]) -> None:
    names = [topic.name for topic in declared(SETTINGS.model_copy(update={"retry_delays": delays}))]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name) for name in names)


def test_work_is_spread_over_the_configured_partitions_and_side_topics_have_one() -> None:
    for name, topic in new_topics().items():
        side = name.endswith(".dlq") or ".retry." in name
        assert topic.num_partitions == (1 if side else 6)
        assert topic.replication_factor == 3


def test_each_kind_of_topic_is_kept_as_long_as_it_is_needed() -> None:
    topics = new_topics()
    assert retention(topics["chunks.extracted"]) == WORK_RETENTION
    assert retention(topics["chunks.extracted.retry.240s"]) == WORK_RETENTION
    assert retention(topics["chunks.extracted.dlq"]) == DEAD_LETTER_RETENTION
    assert retention(topics["task.updates"]) == UPDATES_RETENTION


def test_a_side_topic_takes_any_record_of_its_topic_and_the_headers_of_a_failure() -> None:
    limits = {
        name: int(topic.topic_configs.get("max.message.bytes", DEFAULT_LIMIT)) for name, topic in new_topics().items()
    }
    assert limits["chunks.extracted.retry.60s"] >= limits["chunks.extracted"] + HEADERS
    assert limits["chunks.extracted.dlq"] >= limits["chunks.extracted"] + HEADERS


def test_nothing_is_compacted_away() -> None:
    assert {topic.topic_configs["cleanup.policy"] for topic in declared(SETTINGS)} == {"delete"}


def test_delays_grow() -> None:
    assert list(RETRY_DELAYS) == sorted(set(RETRY_DELAYS))


def test_every_stage_of_a_task_has_work_and_only_the_tracker_another_one() -> None:
    assert {topic.stage for topic in TOPICS} == {*Stage, TRACK}
    assert {topic.name for topic in TOPICS if topic.stage == TRACK} == {TASK_EVENTS.name, TASK_UPDATES.name}


def test_every_step_is_asked_for_on_one_topic_which_is_its_stages() -> None:
    asking = [topic for topic in TOPICS if topic.step]
    assert sorted(topic.step or "" for topic in asking) == sorted(Step)
    assert all(topic.step and topic.step.stage == topic.stage for topic in asking)


def test_no_two_topics_share_a_group() -> None:
    groups = [topic.group for topic in TOPICS if topic.group]
    assert len(groups) == len(set(groups))


def test_a_topic_that_another_migration_has_just_made_is_fine() -> None:
    _check(SimpleNamespace(topic_errors=[("a", 0, None), ("b", 36, "already there")]))


def test_a_topic_that_cannot_be_made_is_named_with_the_brokers_reason() -> None:
    answer = SimpleNamespace(topic_errors=[("a", 0, None), ("b", 38, "only 1 broker")])
    with pytest.raises(InvalidReplicationFactorError, match="b: only 1 broker"):
        _check(answer)
