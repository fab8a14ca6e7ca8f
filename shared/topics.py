"""The topics: declared once, created by `paperlane migrate`, never by auto-creation.

Auto-creation would make a single partition, and a producer to a missing topic blocks for 40 seconds.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import InvalidPartitionsError, for_code

from shared.events import Stage, Step
from shared.kafka import LARGEST_RECORD, client_options
from shared.settings import KafkaSettings

WORK_RETENTION = timedelta(days=7)
"""How long work waits for a stage that is down; beyond that the watchdog would have given up on the task."""

UPDATES_RETENTION = timedelta(hours=1)
"""Updates are read live by every gateway; whoever comes later reads PostgreSQL instead."""

DEAD_LETTER_RETENTION = timedelta(days=30)
"""Time for people to look at a dead letter and to replay it."""


@dataclass(frozen=True)
class Topic:
    """One topic.

    Attributes
    ----------
    stage
        Whose work it carries: the stage in health, statistics and metrics.
    group
        The consumer group that works through it; None where every process reads all of it.
    retried
        Whether failed records of it wait in retry topics for another attempt.
    step
        What the unit of work does that a record asks for; the task fails with it. None where records are no units.
    """

    name: str
    stage: str
    group: str | None
    retention: timedelta = WORK_RETENTION
    retried: bool = True
    step: Step | None = None

    def retry(self, delay: timedelta) -> str:
        """Return the name of the topic in which records of this one wait for `delay`."""
        return f"{self.name}.retry.{int(delay.total_seconds())}s"

    @property
    def relay_group(self) -> str:
        """The group that reads its retry topics: one for all topics of a service."""
        return f"{(self.group or self.name).partition('.')[0]}.relay"

    @property
    def dead_letters(self) -> str:
        """The topic that keeps records of this one that could not be processed."""
        return f"{self.name}.dlq"


TRACK = "track"
"""The tracker's name among the stages; it is none of those that a document passes."""

DOCUMENTS_SUBMITTED = Topic("documents.submitted", Stage.PARSE, "parser.plan", step=Step.PLAN)
PAGES_REQUESTED = Topic("pages.requested", Stage.PARSE, "parser.extract", step=Step.PARSE)
CHUNKS_EXTRACTED = Topic("chunks.extracted", Stage.EMBED, "embedder", step=Step.EMBED)
CHUNKS_EMBEDDED = Topic("chunks.embedded", Stage.INDEX, "indexer", step=Step.INDEX)
DOCUMENTS_COMPLETED = Topic("documents.completed", Stage.INDEX, "indexer.retire")
TASK_CONTROL = Topic("task.control", Stage.INDEX, "indexer.discard")
"""Cancellations: every worker reads all of them, to drop what waits; the group removes what was indexed."""

TASK_EVENTS = Topic("task.events", TRACK, "tracker", retried=False)
TASK_UPDATES = Topic("task.updates", TRACK, None, retention=UPDATES_RETENTION, retried=False)

TOPICS = (
    DOCUMENTS_SUBMITTED,
    PAGES_REQUESTED,
    CHUNKS_EXTRACTED,
    CHUNKS_EMBEDDED,
    DOCUMENTS_COMPLETED,
    TASK_CONTROL,
    TASK_EVENTS,
    TASK_UPDATES,
)


def declared(settings: KafkaSettings) -> Iterator[NewTopic]:
    """Yield all topics with their retry and dead-letter topics."""
    for topic in TOPICS:
        yield from with_side_topics(topic, settings)


def with_side_topics(topic: Topic, settings: KafkaSettings) -> Iterator[NewTopic]:
    """Yield a topic with its retry and dead-letter topics.

    Side topics carry little and keep no order of their own, so one partition does. Their records have more headers
    than the originals, so they may be larger.
    """
    larger = {"max.message.bytes": str(LARGEST_RECORD)}
    yield _new_topic(topic.name, settings.topic_partitions, topic.retention, settings, {})
    if topic.retried:
        for delay in dict.fromkeys(settings.retry_delays):  # equal delays share a topic
            yield _new_topic(topic.retry(delay), 1, WORK_RETENTION, settings, larger)
    if topic.group:
        yield _new_topic(topic.dead_letters, 1, DEAD_LETTER_RETENTION, settings, larger)


def _new_topic(
    name: str, partitions: int, retention: timedelta, settings: KafkaSettings, more: dict[str, str]
) -> NewTopic:
    config = {"retention.ms": str(int(retention.total_seconds() * 1000)), "cleanup.policy": "delete", **more}
    return NewTopic(name, partitions, settings.topic_replication_factor, topic_configs=config)


async def create_topics(settings: KafkaSettings) -> list[str]:
    """Create the topics that are missing, and add partitions where the settings ask for more.

    Partitions are never taken away, which Kafka cannot do.

    Returns
    -------
    list of str
        Names of the topics that were created or extended.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        existing = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
        wanted = list(declared(settings))
        missing = [topic for topic in wanted if topic.name not in existing]
        short = {
            topic.name: NewPartitions(topic.num_partitions)
            for topic in wanted
            if existing.get(topic.name, topic.num_partitions) < topic.num_partitions
        }
        if missing:
            _check(await admin.create_topics(missing))
        for name, more in short.items():
            with suppress(InvalidPartitionsError):  # another migration was faster: the topic has that many already
                await admin.create_partitions({name: more})
        return [topic.name for topic in missing] + list(short)
    finally:
        await admin.close()


def _check(response: object) -> None:
    """Raise the first error of an admin response; one made at the same time by another migration is fine."""
    for name, code, *message in getattr(response, "topic_errors", ()):
        error = for_code(code)
        if code and error.__name__ != "TopicAlreadyExistsError":
            raise error(f"{name}: {message[0] if message else error.description}")
