import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from alembic import command
from pydantic import SecretStr
from sqlalchemy import make_url

from deploy.local.services import migrate_command, service_environment
from shared import topics
from shared.database.migrations import _config, migrate_schema
from shared.kafka import client_options
from shared.settings import RETRY_DELAYS, DatabaseSettings, KafkaSettings
from shared.tasks import TaskRow
from shared.topics import TOPICS, Topic, create_topics
from tests.integration.conftest import StackSettings
from tests.support.eventually import eventually
from tests.support.task_events import START

RETENTION = timedelta(hours=3)

OLD_TASK = """
    INSERT INTO tasks (task_id, owner, document_id, filename, size, sha256, blob_url, created_at, updated_at,
                       status, completed_at, dispatched_at)
    VALUES ($1, 'owner', gen_random_uuid(), 'a.pdf', 1, '', '', $3, $3, $2, $3, $4)
"""
OLD_UNIT = "INSERT INTO task_units (task_id, stage, shard, part, done, finished_at) VALUES ($1, $2, 0, 0, $3, $4)"


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> tuple[Topic, Topic]:
    """Declare two topics that nobody else uses in place of the real ones: one retried, one read by all."""
    names = [f"test-{uuid4()}" for _ in range(2)]
    pair = Topic(names[0], "embed", "group"), Topic(names[1], "track", None, retention=RETENTION, retried=False)
    monkeypatch.setattr(topics, "TOPICS", pair)
    return pair


def with_partitions(settings: KafkaSettings, count: int) -> KafkaSettings:
    return settings.model_copy(update={"topic_partitions": count})


@asynccontextmanager
async def admin_of(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def partitions(settings: KafkaSettings) -> dict[str, int]:
    async with admin_of(settings) as admin:
        return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}


async def have(settings: KafkaSettings, expected: Mapping[str, int]) -> None:
    """Wait until topics have as many partitions as expected; the broker shows them a moment after it made them."""

    async def check() -> None:
        there = await partitions(settings)
        assert {name: there.get(name) for name in expected} == expected

    await eventually(check)


async def configuration(settings: KafkaSettings, topic: str) -> Mapping[str, str]:
    async with admin_of(settings) as admin:
        answers: list[Any] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answers[0].resources[0][4]}


def side_topics(topic: Topic) -> set[str]:
    return {*map(topic.retry, RETRY_DELAYS), topic.dead_letters}


async def test_a_migration_makes_every_declared_topic(settings: KafkaSettings) -> None:
    there = await partitions(settings)
    for topic in TOPICS:
        assert there[topic.name] == settings.topic_partitions
        side = side_topics(topic) if topic.retried else {topic.dead_letters} if topic.group else set()
        assert {name: there.get(name) for name in side} == dict.fromkeys(side, 1)


async def test_creating_topics_again_changes_nothing(settings: KafkaSettings, declared: tuple[Topic, Topic]) -> None:
    retried, read_by_all = declared
    wanted = {retried.name: 3, read_by_all.name: 3, **dict.fromkeys(side_topics(retried), 1)}
    assert set(await create_topics(with_partitions(settings, 3))) == set(wanted)
    await have(settings, wanted)
    assert await create_topics(with_partitions(settings, 3)) == []
    await have(settings, wanted)


async def test_partitions_are_added_but_never_taken_away(
    settings: KafkaSettings, declared: tuple[Topic, Topic]
) -> None:
    retried, read_by_all = declared
    side = dict.fromkeys(side_topics(retried), 1)
    await create_topics(with_partitions(settings, 2))
    await have(settings, {retried.name: 2, read_by_all.name: 2, **side})
    assert set(await create_topics(with_partitions(settings, 5))) == {retried.name, read_by_all.name}
    await have(settings, {retried.name: 5, read_by_all.name: 5, **side})
    assert await create_topics(with_partitions(settings, 1)) == []
    await have(settings, {retried.name: 5, read_by_all.name: 5, **side})


async def test_a_topic_that_is_missing_is_made_beside_those_that_exist(
    settings: KafkaSettings, declared: tuple[Topic, Topic], monkeypatch: pytest.MonkeyPatch
) -> None:
    retried, read_by_all = declared
    monkeypatch.setattr(topics, "TOPICS", declared[1:])
    assert await create_topics(with_partitions(settings, 2)) == [read_by_all.name]
    await have(settings, {read_by_all.name: 2})
    monkeypatch.setattr(topics, "TOPICS", declared)
    created = await create_topics(with_partitions(settings, 4))
    assert set(created) == {retried.name, read_by_all.name, *side_topics(retried)}
    await have(settings, {retried.name: 4, read_by_all.name: 4})


async def test_retention_is_set(settings: KafkaSettings, declared: tuple[Topic, Topic]) -> None:
    retried, read_by_all = declared
    expected = {
        retried.name: topics.WORK_RETENTION,
        retried.retry(RETRY_DELAYS[0]): topics.WORK_RETENTION,
        retried.dead_letters: topics.DEAD_LETTER_RETENTION,
        read_by_all.name: RETENTION,
    }
    await create_topics(with_partitions(settings, 1))
    await have(settings, dict.fromkeys(expected, 1))
    for name, retention in expected.items():
        config = await configuration(settings, name)
        assert config["retention.ms"] == str(int(retention.total_seconds() * 1000))
        assert config["cleanup.policy"] == "delete"


async def test_several_migrations_may_create_and_extend_topics_at_once(
    settings: KafkaSettings, declared: tuple[Topic, Topic]
) -> None:
    for count in (2, 4, 6):
        await asyncio.gather(*(create_topics(with_partitions(settings, count)) for _ in range(3)))
        await have(settings, {topic.name: count for topic in declared})


@pytest.fixture
async def empty_database(settings: StackSettings) -> DatabaseSettings:
    """A database of this test's own, without any schema."""
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    url = make_url(settings.database_url.get_secret_value()).set(database=name)
    return DatabaseSettings(database_url=SecretStr(url.render_as_string(hide_password=False)))


async def tables(settings: DatabaseSettings) -> set[str]:
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    records = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return {record["tablename"] for record in records}


async def test_migrating_the_schema_again_changes_nothing(empty_database: DatabaseSettings) -> None:
    await asyncio.to_thread(migrate_schema, empty_database)
    made = await tables(empty_database)
    assert made >= {"tasks", "task_units", "task_retries", "duration_counts", "chunks"}
    await asyncio.to_thread(migrate_schema, empty_database)
    assert await tables(empty_database) == made


async def test_the_schema_for_recovery_keeps_what_was_there_and_may_be_taken_back(
    empty_database: DatabaseSettings,
) -> None:
    config = _config(empty_database)
    await asyncio.to_thread(command.upgrade, config, "0002")
    connection = await asyncpg.connect(empty_database.database_url.get_secret_value())
    try:
        for status, dispatched in (("pending", False), ("running", False), ("failed", True), ("completed", True)):
            await connection.execute(OLD_TASK, uuid4(), status, START, START if dispatched else None)
        failed = await connection.fetchval("SELECT task_id FROM tasks WHERE status = 'failed'")
        for stage, done in (("plan", True), ("parse", False)):
            await connection.execute(OLD_UNIT, failed, stage, done, START)
        [shard, _] = map(dict, await connection.fetch("SELECT * FROM task_units ORDER BY stage"))

        await asyncio.to_thread(command.upgrade, config, "0003")
        left = await connection.fetch("SELECT status FROM tasks WHERE dispatched_at IS NULL")
        assert [row["status"] for row in left] == ["pending"], "only the upload is left in the outbox"
        untold = await connection.fetch("SELECT * FROM tasks WHERE status = 'failed' AND alerted_at IS NULL")
        assert untold == []
        states = await connection.fetch("SELECT step, state, run FROM task_units ORDER BY step")
        assert [tuple(row) for row in states] == [("parse", "failed", 0), ("plan", "done", 0)]
        [row] = [TaskRow(**row) for row in await connection.fetch("SELECT * FROM tasks WHERE task_id = $1", failed)]
        assert (row.replays, row.engine, row.next_retry_at) == (0, None, None)

        await connection.execute("UPDATE task_units SET step = 'embed', state = 'open' WHERE step = 'plan'")
        await asyncio.to_thread(command.downgrade, config, "0002")
        assert list(map(dict, await connection.fetch("SELECT * FROM task_units"))) == [shard]
        await asyncio.to_thread(command.upgrade, config, "head")
        assert await connection.fetchval("SELECT count(*) FROM tasks") == 4
    finally:
        await connection.close()


async def test_two_migrations_of_an_empty_database_at_once_both_succeed(
    settings: StackSettings, empty_database: DatabaseSettings
) -> None:
    environment = service_environment(
        {
            "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
            "DATABASE_URL": empty_database.database_url.get_secret_value(),
        }
    )
    processes = [
        await asyncio.create_subprocess_exec(
            *migrate_command(), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        for _ in range(2)
    ]
    for process in processes:
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
    assert "tasks" in await tables(empty_database)
