import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from aiokafka.structs import RecordMetadata
from typing_extensions import override

from services.gateway.tasks import Tasks
from services.tracker import dispatcher as dispatcher_module
from services.tracker.dispatcher import GRACE, Dispatcher
from shared.database.pool import Pool
from shared.events import DocumentSubmitted, TaskCanceled, TaskUpdated
from shared.kafka import Outgoing, Publisher
from shared.settings import KafkaSettings
from shared.tasks import TaskRow, canceled, submitted, update_of
from shared.topics import DOCUMENTS_SUBMITTED, TASK_CONTROL, TASK_UPDATES
from tests.support.eventually import before_long
from tests.support.kafka_lab import Ends, KafkaLab
from tests.support.task_events import SECOND, START, current, new_task

LATER = START + timedelta(minutes=1)
"""When everything that was uploaded at START is due."""


class HeldPublisher(Publisher):
    """Publishes only once it may: a broker that takes its time."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(settings)
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()

    @override
    async def publish(self, records: Iterable[Outgoing]) -> list[RecordMetadata]:
        records = list(records)
        if records:
            self.entered.set()
            await self.may_go_on.wait()
        return await super().publish(records)


def dispatcher(pool: Pool, publisher: Publisher, settings: KafkaSettings, at: datetime = LATER) -> Dispatcher:
    return Dispatcher(pool, publisher, settings, lambda: at)


@pytest.fixture
async def ends(lab: KafkaLab) -> Ends:
    """Where the topic ended before the test."""
    return await lab.ends(DOCUMENTS_SUBMITTED.name)


async def dispatched_at(tasks: Tasks, task: TaskRow) -> object:
    return (await current(tasks, task)).dispatched_at


async def published(lab: KafkaLab, ends: Ends, count: int) -> list[DocumentSubmitted]:
    records = await lab.read(DOCUMENTS_SUBMITTED.name, count, since=ends)
    events = [DocumentSubmitted.model_validate_json(record.value or b"") for record in records]
    assert [record.key for record in records] == [str(event.task_id).encode() for event in events]
    return events


async def test_what_was_left_over_is_published_once_its_gateway_has_had_its_time(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    old, new = new_task(), new_task(at=START + SECOND)
    for task in (old, new):
        await tasks.insert(task)
    assert await dispatcher(pool, publisher, lab.settings, START + GRACE).dispatch() == 0
    assert await dispatched_at(tasks, old) is None
    just_due = START + GRACE + timedelta(microseconds=1)
    assert await dispatcher(pool, publisher, lab.settings, just_due).dispatch() == 1
    assert await dispatched_at(tasks, old) == just_due
    assert await dispatched_at(tasks, new) is None
    assert await published(lab, ends, 1) == [submitted(old)]
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 1
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 0
    assert {event.task_id for event in await published(lab, ends, 2)} == {old.task_id, new.task_id}


async def test_what_was_published_though_its_gateway_could_not_note_it_leaves_the_outbox_without_a_word(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    moved_on = [replace(new_task(), status=status) for status in ("running", "completed", "failed")]
    for task in (*moved_on, replace(new_task(), dispatched_at=START)):
        await tasks.insert(task)
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 3
    assert await published(lab, ends, 0) == []
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 0


async def test_a_cancellation_that_was_left_over_is_told_to_workers_and_watchers(
    lab: KafkaLab, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    task = new_task()
    await tasks.insert(task)
    row = await tasks.cancel(task.owner, task.task_id, START)
    assert row
    control, updates = await lab.ends(TASK_CONTROL.name), await lab.ends(TASK_UPDATES.name)
    assert await dispatcher(pool, publisher, lab.settings, START + GRACE).dispatch() == 0
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 1
    [told] = await lab.read(TASK_CONTROL.name, 1, since=control)
    assert TaskCanceled.model_validate_json(told.value or b"") == canceled(row)
    [seen] = await lab.read(TASK_UPDATES.name, 1, since=updates)
    assert TaskUpdated.model_validate_json(seen.value or b"") == update_of(row)
    assert await dispatched_at(tasks, task) == LATER


async def test_many_leave_in_several_batches_the_oldest_first(
    lab: KafkaLab,
    ends: Ends,
    tasks: Tasks,
    pool: Pool,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher_module, "BATCH", 2)
    many = [new_task(at=START + n * SECOND) for n in range(5)]
    for task in reversed(many):
        await tasks.insert(task)
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 5
    assert {event.task_id for event in await published(lab, ends, 5)} == {task.task_id for task in many}


async def test_a_row_in_one_dispatchers_hands_is_not_published_by_another(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    held, late = new_task(), new_task()
    await tasks.insert(held)
    slow = HeldPublisher(lab.settings)
    await slow.start()
    first = asyncio.create_task(dispatcher(pool, slow, lab.settings).dispatch())
    await before_long(slow.entered.wait())
    second = dispatcher(pool, publisher, lab.settings)
    assert await second.dispatch() == 0
    await tasks.insert(late)
    assert await second.dispatch() == 1
    slow.may_go_on.set()
    assert await before_long(first) == 1
    await slow.aclose()
    events = await published(lab, ends, 2)
    assert sorted(event.task_id for event in events) == sorted([held.task_id, late.task_id])


async def test_two_dispatchers_at_once_publish_every_row_once(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "BATCH", 3)
    many = [new_task() for _ in range(20)]
    for task in many:
        await tasks.insert(task)
    two = [dispatcher(pool, publisher, lab.settings).dispatch() for _ in range(2)]
    assert sum(await asyncio.gather(*two)) == 20
    assert sorted(event.task_id for event in await published(lab, ends, 20)) == sorted(task.task_id for task in many)


async def test_a_dispatcher_that_dies_before_the_ack_leaves_its_row_to_the_next(
    lab: KafkaLab, tasks: Tasks, pool: Pool, publisher: Publisher
) -> None:
    task = new_task()
    await tasks.insert(task)
    slow = HeldPublisher(lab.settings)
    await slow.start()
    dying = asyncio.create_task(dispatcher(pool, slow, lab.settings).dispatch())
    await before_long(slow.entered.wait())
    dying.cancel()
    with suppress(asyncio.CancelledError):
        await dying
    await slow.aclose()
    assert await dispatched_at(tasks, task) is None
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 1
    assert await dispatched_at(tasks, task) == LATER


async def test_without_a_broker_everything_stays_until_there_is_one(
    lab: KafkaLab, ends: Ends, tasks: Tasks, pool: Pool
) -> None:
    task, publisher = new_task(), Publisher(lab.settings)
    await tasks.insert(task)
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 0
    assert await current(tasks, task) == task
    await publisher.start()
    assert await dispatcher(pool, publisher, lab.settings).dispatch() == 1
    await publisher.aclose()
    assert await published(lab, ends, 1) == [submitted(task)]
