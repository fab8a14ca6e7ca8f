import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from shared import cancellations
from shared.cancellations import Cancellations
from shared.errors import DependencyUnavailableError
from shared.events import Stage, Step, TaskCanceled
from shared.kafka import Outgoing, Publisher
from shared.stage import Runtime, StageRunner
from shared.topics import TASK_CONTROL, Topic
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.stack_thread import StackThread


async def cancel(lab: KafkaLab, task_id: UUID) -> None:
    event = TaskCanceled(task_id=task_id, document_id=uuid4(), owner="owner")
    await lab.send(TASK_CONTROL.name, event.model_dump_json().encode(), key=str(task_id).encode())


async def told_of(canceled: Cancellations, task_id: UUID) -> None:
    with canceled.watch(task_id) as told:
        if task_id not in canceled:
            await before_long(told)


async def test_whoever_opens_them_knows_all_that_were_before_and_is_told_of_those_that_come(lab: KafkaLab) -> None:
    before, later, never = [uuid4() for _ in range(40)], uuid4(), uuid4()
    for task_id in before:  # across all partitions
        await cancel(lab, task_id)
    async with Cancellations.open(lab.settings) as canceled:
        assert [task_id for task_id in before if task_id not in canceled] == []
        assert later not in canceled
        with canceled.watch(later) as told:
            await cancel(lab, later)
            await before_long(told)
        assert later in canceled
        assert never not in canceled


async def test_what_makes_no_sense_is_passed_over(lab: KafkaLab) -> None:
    early, late, key = uuid4(), uuid4(), str(uuid4()).encode()
    nonsense = [b"", None, b"\xff", b"[]", b'{"schema_version": 9}', b'{"task_id": "x"}']
    for value in nonsense:
        await lab.send(TASK_CONTROL.name, value, key=key, partition=0, headers=[("h", b"\xff")])
    await cancel(lab, early)
    async with Cancellations.open(lab.settings) as canceled:
        assert early in canceled
        for partition in await lab.partitions(TASK_CONTROL.name):
            for value in nonsense:
                await lab.send(TASK_CONTROL.name, value, key=key, partition=partition.partition)
        await cancel(lab, late)
        await told_of(canceled, late)
        assert UUID(key.decode()) not in canceled


async def test_every_process_reads_all_of_them(lab: KafkaLab) -> None:
    tasks = [uuid4() for _ in range(10)]
    async with Cancellations.open(lab.settings) as first, Cancellations.open(lab.settings) as second:
        for task_id in tasks:
            await cancel(lab, task_id)
        for task_id in tasks:
            await told_of(first, task_id)
            await told_of(second, task_id)


async def test_they_go_on_after_the_broker_was_away(
    lab: KafkaLab, publisher: Publisher, stack_thread: StackThread
) -> None:
    task_id = uuid4()

    async def silent() -> None:  # which takes a moment: a process does not stop at once
        assert not await publisher.ping()

    async with Cancellations.open(lab.settings) as canceled:
        with stack_thread.frozen("kafka"):
            await eventually(silent)
            sending = asyncio.create_task(cancel(lab, task_id))
        await before_long(sending)
        await told_of(canceled, task_id)


async def test_a_topic_that_is_missing_is_named_with_what_makes_it(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellations, "TASK_CONTROL", Topic("missing", Stage.INDEX, None))
    monkeypatch.setattr(cancellations, "CONNECT_PATIENCE", timedelta(seconds=1))
    with pytest.raises(DependencyUnavailableError, match="topic missing cannot be read: has `paperlane migrate`"):
        async with Cancellations.open(lab.settings):
            pass


async def test_a_worker_that_starts_after_the_cancellation_drops_what_waits(
    lab: KafkaLab, publisher: Publisher
) -> None:
    topic, output = await lab.topic(step=Step.INDEX), await lab.topic()
    gone, wanted = uuid4(), uuid4()
    handled: list[UUID] = []

    async def handle(event: TaskCanceled) -> list[Outgoing]:  # any event will do as a unit of work
        handled.append(event.task_id)
        return [Outgoing(output.name, None, b"done")]

    for task_id in (gone, wanted, gone):
        event = TaskCanceled(task_id=task_id, document_id=uuid4(), owner="owner")
        await lab.send(topic.name, event.model_dump_json().encode(), key=str(task_id).encode())
    await cancel(lab, gone)
    async with Cancellations.open(lab.settings) as canceled:
        runner = StageRunner(topic, TaskCanceled, handle, Runtime(publisher, canceled))
        async with lab.consuming(topic, runner):

            async def committed() -> None:
                assert await lab.committed(topic) == {0: 3}

            await eventually(committed)
    assert handled == [wanted]
    assert [record.value for record in await lab.read(output.name, 1)] == [b"done"]
