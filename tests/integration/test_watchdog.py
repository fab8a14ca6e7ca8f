"""The watchdog over real records and rows, which tests write as if at another time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import pytest
from aiokafka.structs import RecordMetadata
from typing_extensions import override

from services.gateway.tasks import Tasks
from services.tracker import backlog
from services.tracker import watchdog as watchdog_module
from services.tracker.backlog import oldest_waiting
from services.tracker.events import EventFolder
from services.tracker.store import TaskStore
from services.tracker.watchdog import Watchdog
from shared.clock import Clock, now
from shared.database.durations import read_durations
from shared.database.pool import Pool, acquire
from shared.errors import DependencyUnavailableError
from shared.events import (
    DocumentPlanned,
    DocumentSubmitted,
    PagesRequested,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Stage,
    TaskEvent,
    TaskUpdated,
)
from shared.kafka import Outgoing, Publisher
from shared.settings import RETRY_DELAYS, KafkaSettings
from shared.tasks import FINAL, TaskRow, submitted, update_of
from shared.topics import (
    CHUNKS_EMBEDDED,
    CHUNKS_EXTRACTED,
    DOCUMENTS_SUBMITTED,
    PAGES_REQUESTED,
    TASK_EVENTS,
    TASK_UPDATES,
)
from tests.support.eventually import before_long
from tests.support.kafka_lab import Ends, KafkaLab
from tests.support.stack_thread import StackThread
from tests.support.task_events import current, log_of, new_task, retried

TIMEOUT = timedelta(minutes=15)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)

TWO_SHARDS = ((64, 2), (64, 2))
"""Pages and parts of a document of 128 pages."""

Missing = dict[int, tuple[int, ...] | None]
"""Parts by shard; None where all of a shard's are meant."""


class DatedPublisher(Publisher):
    """Publishes as if at the time that a clock shows."""

    def __init__(self, settings: KafkaSettings, clock: Clock) -> None:
        super().__init__(settings)
        self._clock = clock

    @override
    async def publish(self, records: Iterable[Outgoing]) -> list[RecordMetadata]:
        assert self._producer
        at = int(self._clock().timestamp() * 1000)
        acks = [await self._producer.send(r.topic, r.value, r.key, None, at, list(r.headers)) for r in records]
        return list(await asyncio.gather(*acks))


@dataclass
class Ward:
    """A watchdog, the time by which all goes, and the tasks that are watched."""

    lab: KafkaLab
    pool: Pool
    tasks: Tasks
    publisher: Publisher
    ends: dict[str, Ends]
    at: datetime

    async def look(self) -> int:
        look = partial(oldest_waiting, self.lab.settings)
        return await before_long(Watchdog(self.pool, self.publisher, look, TIMEOUT, lambda: self.at).look())

    async def later(self, by: timedelta = TIMEOUT + SECOND) -> int:
        """Let time go by and look."""
        self.at += by
        return await self.look()

    async def fold(self, *events: TaskEvent) -> None:
        await TaskStore(self.pool, lambda: self.at).fold(events)

    async def task(self, *events: TaskEvent, task: TaskRow | None = None) -> TaskRow:
        """Return a task that was just dispatched, and of which some events were folded."""
        task = task or new_task(at=self.at)
        await self.tasks.insert(replace(task, dispatched_at=self.at))
        await self.fold(*events)
        return await current(self.tasks, task)

    async def waits(self, topic: str) -> None:
        """Write a record that nobody has finished."""
        await self.lab.send(topic, b"x", at=self.at)

    async def asked_for(self) -> tuple[list[DocumentSubmitted], Missing]:
        """Return which documents and parts were sent out since the last time, and let them be consumed, and lost."""
        before, self.ends = self.ends, {topic: await self.lab.ends(topic) for topic in self.ends}
        documents, pages = [
            await self.lab.read(topic, sum(self.ends[topic].values()) - sum(end.values()), since=end)
            for topic, end in before.items()
        ]
        await self.lab.catch_up_everywhere()
        requests = [PagesRequested.model_validate_json(record.value or b"") for record in pages]
        assert len({request.shard for request in requests}) == len(requests)
        return (
            [DocumentSubmitted.model_validate_json(record.value or b"") for record in documents],
            {request.shard: request.parts for request in requests},
        )


@pytest.fixture
async def ward(lab: KafkaLab, pool: Pool, tasks: Tasks) -> AsyncIterator[Ward]:
    await lab.catch_up_everywhere()
    ends = {topic.name: await lab.ends(topic.name) for topic in (DOCUMENTS_SUBMITTED, PAGES_REQUESTED)}
    ward = Ward(lab, pool, tasks, Publisher(lab.settings), ends, now() - 24 * HOUR)
    ward.publisher = DatedPublisher(lab.settings, lambda: ward.at)
    await ward.publisher.start()
    yield ward
    await ward.publisher.aclose()


async def test_a_document_whose_record_was_lost_is_sent_again_once_it_was_silent_for_long(ward: Ward) -> None:
    task = await ward.task()
    assert await ward.later(TIMEOUT - SECOND) == 0
    assert await ward.later(2 * SECOND) == 1
    assert await ward.look() == 0
    assert await ward.asked_for() == ([submitted(task)], {})
    row = await current(ward.tasks, task)
    assert row.redispatched_at == ward.at
    assert replace(row, redispatched_at=None) == task


async def test_a_task_that_stays_silent_fails_and_all_are_told(ward: Ward) -> None:
    task = await ward.task()
    updates = await ward.lab.ends(TASK_UPDATES.name)
    assert await ward.later() == 1
    await ward.asked_for()
    assert await ward.later(TIMEOUT - SECOND) == 0
    assert await ward.later(2 * SECOND) == 1
    row = await current(ward.tasks, task)
    assert (row.status, row.error_code, row.error_stage, row.version) == ("failed", "task_timeout", "parse", 2)
    assert row.error_message == "Task timeout: nothing was heard of it for 900 s, twice"
    assert row.completed_at == ward.at
    [told] = await ward.lab.read(TASK_UPDATES.name, 1, since=updates)
    assert TaskUpdated.model_validate_json(told.value or b"") == update_of(row)
    async with acquire(ward.pool) as connection:
        counted = await read_durations(connection, "task")
    assert [(label, each.total) for label, each in counted.items()] == [("document_process/failed", 1)]
    assert await ward.later() == 0
    assert await ward.asked_for() == ([], {})


Lost = Callable[[TaskEvent], bool]


def is_plan(event: TaskEvent) -> bool:
    return isinstance(event, DocumentPlanned)


def of_shard(shard: int) -> Lost:
    return lambda event: getattr(event, "shard", None) == shard


def of_part(kind: type[PartEmbedded | PartIndexed], shard: int, part: int) -> Lost:
    return lambda event: isinstance(event, kind) and (event.shard, event.part) == (shard, part)


def is_shard(shard: int) -> Lost:
    return lambda event: isinstance(event, ShardExtracted) and event.shard == shard


@pytest.mark.parametrize(
    ("lost", "missing", "stage"),
    [
        ([of_shard(1)], {1: None}, Stage.PARSE),
        ([is_shard(1)], {1: None}, Stage.PARSE),
        ([of_part(PartIndexed, 0, 1)], {0: (1,)}, Stage.INDEX),
        ([of_part(PartEmbedded, 0, 1), of_part(PartIndexed, 0, 1)], {0: (1,)}, Stage.EMBED),
        ([of_part(PartEmbedded, 1, 0)], {1: (0,)}, Stage.EMBED),
        ([of_part(PartIndexed, 0, 0), of_part(PartIndexed, 0, 1), of_shard(1)], {0: (0, 1), 1: None}, Stage.PARSE),
    ],
)
async def test_exactly_what_was_lost_is_sent_again_and_what_is_done_is_not(
    ward: Ward, lost: list[Lost], missing: Missing, stage: Stage
) -> None:
    task = new_task(at=ward.at)
    await ward.task(*(event for event in log_of(task, TWO_SHARDS) if not any(each(event) for each in lost)), task=task)
    assert await ward.later() == 1
    assert await ward.asked_for() == ([], missing)
    await ward.later()
    assert (await current(ward.tasks, task)).error_stage == stage


async def test_what_was_sent_again_completes_the_task(ward: Ward) -> None:
    task = new_task(at=ward.at)
    log = log_of(task, TWO_SHARDS)
    await ward.task(*(event for event in log if not of_shard(1)(event)), task=task)
    assert await ward.later() == 1
    await ward.fold(*log)
    row = await current(ward.tasks, task)
    assert (row.status, row.index_done) == ("completed", 4)
    assert await ward.later() == 0


async def test_a_task_that_moved_after_its_work_was_sent_again_has_it_sent_again_once_more(ward: Ward) -> None:
    task = new_task(at=ward.at)
    plan, shard, *_ = log_of(task, TWO_SHARDS)
    await ward.task(plan, task=task)
    assert await ward.later() == 1
    assert await ward.asked_for() == ([], {0: None, 1: None})
    ward.at += MINUTE
    await ward.fold(shard)
    assert await ward.later() == 1
    assert await ward.asked_for() == ([], {0: (0, 1), 1: None})
    assert (await current(ward.tasks, task)).status == "running"
    assert await ward.later() == 1
    assert (await current(ward.tasks, task)).status == "failed"


WORK = [DOCUMENTS_SUBMITTED, PAGES_REQUESTED, CHUNKS_EXTRACTED, CHUNKS_EMBEDDED]


@pytest.mark.parametrize("topic", [*(t.name for t in WORK), *(CHUNKS_EXTRACTED.retry(delay) for delay in RETRY_DELAYS)])
async def test_a_task_that_waits_in_any_topic_is_left_alone_however_long(ward: Ward, topic: str) -> None:
    await ward.waits(topic)
    task = await ward.task()
    assert await ward.later(15 * HOUR) == 0
    assert await current(ward.tasks, task) == task
    await ward.lab.catch_up_everywhere()
    assert await ward.look() == 1


async def test_a_task_that_waits_behind_younger_ones_only_is_lost(ward: Ward) -> None:
    await ward.task()
    ward.at += MINUTE
    await ward.waits(PAGES_REQUESTED.name)
    assert await ward.later() == 1


async def test_work_that_was_sent_again_and_waits_protects_its_task_too(ward: Ward) -> None:
    task = await ward.task()
    assert await ward.later() == 1
    assert await ward.later(5 * HOUR) == 0
    assert (await current(ward.tasks, task)).status == "pending"


async def test_work_that_is_made_again_protects_its_task_although_it_moves_nothing(ward: Ward) -> None:
    """A part is lost; its shard is extracted again, which is no news, and the part waits for an embedder."""
    task = new_task(at=ward.at)
    plan, *shards = [event for event in log_of(task, TWO_SHARDS) if not isinstance(event, PartEmbedded | PartIndexed)]
    await ward.task(plan, *shards, task=task)
    assert await ward.later() == 1
    await ward.asked_for()
    ward.at += 5 * MINUTE
    await ward.waits(CHUNKS_EXTRACTED.name)
    await ward.fold(shards[0])
    assert await ward.later() == 0
    assert await ward.later(5 * HOUR) == 0
    await ward.lab.catch_up_everywhere()
    assert await ward.look() == 1
    assert (await current(ward.tasks, task)).status == "failed", "it has not moved"


async def test_a_retry_that_pends_protects_its_task_until_long_after_it_is_due(ward: Ward) -> None:
    """Such as one that a provider wants to see no earlier than in an hour."""
    task = new_task(at=ward.at)
    due = {"retry_at": ward.at + HOUR}
    await ward.task(retried(task, Stage.EMBED, 0, 0, ward.at, **due), task=task)
    assert await ward.later(HOUR + TIMEOUT - SECOND) == 0
    assert (await current(ward.tasks, task)).next_retry_at == due["retry_at"]
    assert await ward.later(2 * SECOND) == 0
    row = await current(ward.tasks, task)
    assert (row.next_retry_at, row.version) == (None, 3), "the retry is told to be over"
    assert await ward.later() == 1
    assert await ward.asked_for() == ([submitted(task)], {})


async def test_a_retry_that_is_due_later_protects_its_task_from_the_end_of_an_earlier_one(ward: Ward) -> None:
    task = new_task(at=ward.at)
    near, far = (retried(task, Stage.EMBED, 0, n, ward.at, retry_at=ward.at + n * HOUR) for n in (1, 5))
    await ward.task(near, far, task=task)
    assert await ward.later(4 * HOUR) == 0
    assert (await current(ward.tasks, task)).next_retry_at is not None


async def test_a_task_whose_retry_came_back_behind_a_long_queue_is_left_alone(ward: Ward) -> None:
    """No report tells when a relay has brought a record back, so the record is younger than its task's row."""
    task = new_task(at=ward.at)
    await ward.task(retried(task, Stage.EMBED, 0, 0, ward.at), task=task)
    ward.at += 10 * MINUTE
    await ward.waits(CHUNKS_EXTRACTED.name)
    for _ in range(2):  # the first time it is noted that the record came back
        assert await ward.later(HOUR) == 0
    await ward.lab.catch_up_everywhere()
    assert await ward.look() == 1
    assert (await current(ward.tasks, task)).status == "running"


async def test_a_report_that_is_not_folded_yet_protects_its_task(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    task = await ward.task()
    plan, *_ = log_of(task, TWO_SHARDS)
    await ward.lab.send(TASK_EVENTS.name, plan.model_dump_json().encode(), key=str(task.task_id).encode(), at=ward.at)
    with monkeypatch.context() as patch:
        patch.setattr(backlog, "LOOK_TIMEOUT", 3 * SECOND)
        with pytest.raises(DependencyUnavailableError):
            await ward.later()
    assert await current(ward.tasks, task) == task
    folder = EventFolder(TaskStore(ward.pool, lambda: ward.at), ward.publisher)
    async with ward.lab.consuming(TASK_EVENTS, folder):
        assert await ward.look() == 0
    assert (await current(ward.tasks, task)).status == "running"


async def test_without_a_broker_nothing_is_judged(
    ward: Ward, stack_thread: StackThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await ward.task()
    monkeypatch.setattr(backlog, "LOOK_TIMEOUT", 3 * SECOND)
    with stack_thread.frozen("kafka"), pytest.raises(DependencyUnavailableError):
        await ward.later()
    assert await current(ward.tasks, task) == task


async def test_a_task_that_is_in_the_outbox_or_over_is_none_of_its_business(ward: Ward) -> None:
    outbox = [replace(new_task(at=ward.at), status=status) for status in ("pending", "running")]
    over = [replace(new_task(at=ward.at), status=status, dispatched_at=ward.at) for status in FINAL]
    for task in (*outbox, *over):
        await ward.tasks.insert(task)
    assert await ward.later() == 0
    for task in (*outbox, *over):
        assert await current(ward.tasks, task) == task


async def test_many_tasks_are_dealt_with_in_batches_and_by_one_tracker_each(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_module, "BATCH", 2)
    many = [await ward.task() for _ in range(7)]
    ward.at += TIMEOUT + SECOND
    assert sum(await asyncio.gather(ward.look(), ward.look())) == len(many)
    documents, _ = await ward.asked_for()
    assert sorted(event.task_id for event in documents) == sorted(task.task_id for task in many)
