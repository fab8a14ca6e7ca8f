import asyncio
import json
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.gateway import hub as hub_module
from services.gateway.hub import Frame, Hub, Slot, encode
from shared.broker import Record
from shared.events import TaskUpdated
from shared.tasks import TaskStatus, update_of
from tests.support.builders import OTHER_TASK, TASK, TasksInMemory, after, patience, record, row, updated


@pytest.fixture
def tasks() -> TasksInMemory:
    return TasksInMemory()


@pytest.fixture
def hub(tasks: TasksInMemory) -> Hub:
    return Hub(tasks)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[TaskUpdated]:
    """Keep what is encoded, which still is encoded."""
    kept: list[TaskUpdated] = []

    def keep(update: TaskUpdated) -> Frame:
        kept.append(update)
        return encode(update)

    monkeypatch.setattr(hub_module, "encode", keep)
    return kept


def update_record(update: TaskUpdated, **changes: Any) -> Record:
    return record(update, topic="task.updates", key=str(update.task_id).encode(), **changes)


async def version_in(slot: Slot) -> int:
    async with patience():
        return (await slot.take()).version


async def nothing_in(slot: Slot) -> bool:
    """Tell whether a slot has nothing to take, by taking what comes next."""
    probe = Frame(10**9, final=False, payload=b"")
    slot.offer(probe)
    async with patience():
        return await slot.take() is probe


def messages(frame: Frame) -> list[dict[str, str]]:
    """Parse SSE messages of one line a field."""
    blocks = frame.payload.decode().removesuffix("\n\n").split("\n\n")
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


async def test_a_watcher_gets_the_updates_of_its_task(hub: Hub) -> None:
    with hub.watch(TASK) as slot:
        await hub((update_record(updated(2)),))
        assert await version_in(slot) == 2


async def test_a_watcher_gets_nothing_of_another_task(hub: Hub) -> None:
    with hub.watch(TASK) as slot, hub.watch(OTHER_TASK) as other:
        await hub((update_record(updated(2, task_id=OTHER_TASK)),))
        assert await version_in(other) == 2
        assert await nothing_in(slot)


async def test_a_client_that_waits_is_woken_by_an_update(hub: Hub) -> None:
    with hub.watch(TASK) as slot:
        waiting = asyncio.create_task(slot.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        await hub((update_record(updated(2)),))
        async with patience():
            assert (await waiting).version == 2


async def test_a_slow_client_gets_the_newest_state_only(hub: Hub) -> None:
    with hub.watch(TASK) as slot:
        for version in range(2, 1002):
            hub.deliver(updated(version))
        assert await version_in(slot) == 1001
        assert await nothing_in(slot)


async def test_versions_never_go_back_and_never_repeat(hub: Hub) -> None:
    with hub.watch(TASK) as slot:
        hub.deliver(updated(5))
        hub.deliver(updated(4))
        assert await version_in(slot) == 5
        hub.deliver(updated(3))
        hub.deliver(updated(5))
        assert await nothing_in(slot)


async def test_a_watcher_gets_only_what_is_newer_than_what_it_has_seen(hub: Hub) -> None:
    with hub.watch(TASK, after=7) as slot:
        hub.deliver(updated(7))
        hub.deliver(updated(8))
        assert await version_in(slot) == 8


async def test_clients_of_one_task_do_not_take_from_each_other(hub: Hub) -> None:
    with hub.watch(TASK) as fast, hub.watch(TASK) as slow:
        hub.deliver(updated(2))
        assert await version_in(fast) == 2
        hub.deliver(updated(3))
        assert await version_in(fast) == 3
        assert await version_in(slow) == 3


async def test_an_update_is_encoded_once_however_many_watch(hub: Hub, encoded: list[TaskUpdated]) -> None:
    with hub.watch(TASK) as first, hub.watch(TASK) as second, hub.watch(TASK) as third:
        await hub((update_record(updated(2)),))
        frames = [await slot.take() for slot in (first, second, third)]
    assert frames[0] is frames[1] is frames[2]
    assert encoded == [updated(2)]


async def test_of_several_updates_in_a_batch_only_the_last_is_encoded(hub: Hub, encoded: list[TaskUpdated]) -> None:
    with hub.watch(TASK) as slot:
        await hub(tuple(update_record(updated(version)) for version in range(2, 100)))
        assert await version_in(slot) == 99
    assert encoded == [updated(99)]


async def test_an_update_that_nobody_watches_is_not_even_decoded(hub: Hub) -> None:
    unreadable = record(b"no JSON", key=str(OTHER_TASK).encode())
    with capture_logs() as lines, hub.watch(TASK):
        await hub((unreadable,))
    assert lines == []


@pytest.mark.parametrize(
    ("key", "value"),
    [(str(TASK).encode(), b"no JSON"), (str(TASK).encode(), None), (b"\xff", b"{}"), (b"no id", b"{}"), (None, b"{}")],
)
async def test_an_update_that_cannot_be_read_is_ignored_and_the_others_arrive(
    hub: Hub, key: bytes | None, value: bytes | None
) -> None:
    with capture_logs() as lines, hub.watch(TASK) as slot, hub.watch(OTHER_TASK) as other:
        await hub((record(value, key=key, partition=3, offset=14), update_record(updated(2, task_id=OTHER_TASK))))
        assert await version_in(other) == 2
        assert await nothing_in(slot)
    [line] = lines
    assert (line["event"], line["partition"], line["offset"]) == ("update ignored", 3, 14)


async def test_a_resync_brings_an_update_that_was_lost(hub: Hub, tasks: TasksInMemory) -> None:
    tasks.rows = {TASK: row(version=6), OTHER_TASK: row(task_id=OTHER_TASK, version=9)}
    with hub.watch(TASK, after=5) as slot:
        await hub.resync()
        assert await version_in(slot) == 6


async def test_a_resync_repeats_nothing_that_was_seen(hub: Hub, tasks: TasksInMemory) -> None:
    tasks.rows[TASK] = row(version=6)
    with hub.watch(TASK) as slot:
        hub.deliver(updated(6))
        assert await version_in(slot) == 6
        await hub.resync()
        assert await nothing_in(slot)


async def test_a_resync_asks_for_the_watched_tasks_in_one_question(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    asked: list[list[UUID]] = []

    async def get_many(_: TasksInMemory, task_ids: list[UUID]) -> list[object]:
        asked.append(sorted(task_ids))
        return []

    monkeypatch.setattr(TasksInMemory, "get_many", get_many)
    await hub.resync()
    with hub.watch(TASK), hub.watch(TASK), hub.watch(OTHER_TASK):
        await hub.resync()
    await hub.resync()
    assert asked == [[TASK, OTHER_TASK]]


async def test_clients_are_counted_while_they_watch(hub: Hub) -> None:
    def clients() -> float:
        return REGISTRY.get_sample_value("paperlane_sse_clients") or 0

    before = clients()
    with hub.watch(TASK), hub.watch(TASK):
        assert clients() == before + 2
    with pytest.raises(ZeroDivisionError), hub.watch(TASK):
        _ = 1 / 0
    assert clients() == before


async def test_nothing_remains_of_watchers_that_left(hub: Hub) -> None:
    with hub.watch(TASK), hub.watch(TASK):
        pass
    hub.deliver(updated(2))
    assert not hub._slots


def test_a_state_is_one_message_with_the_version_as_its_id() -> None:
    frame = encode(updated(3, stages={"parse": {"done": 1}}, retry_count=2, next_retry_at=after(60)))
    [message] = messages(frame)
    assert (message["id"], frame.version, frame.final) == ("3", 3, False)
    assert "event" not in message
    assert json.loads(message["data"]) == {
        "task_id": str(TASK),
        "version": 3,
        "status": "running",
        "progress": 10,
        "message": "at work",
        "retry_count": 2,
        "next_retry_at": "2026-03-01T12:01:00Z",
        "stages": {"parse": {"done": 1}},
    }


@pytest.mark.parametrize("status", [TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELED])
def test_the_last_state_is_followed_by_complete_which_alone_has_the_id(status: TaskStatus) -> None:
    frame = encode(updated(9, status=status, progress=100, result={"pages": 4}))
    state, end = messages(frame)
    assert frame.final
    assert set(state) == {"data"}
    assert (end["id"], end["event"]) == ("9", "complete")
    assert json.loads(end["data"]) == {
        "task_id": str(TASK),
        "version": 9,
        "status": status,
        "result": {"pages": 4},
        "error": None,
    }


def test_text_with_line_ends_stays_one_message() -> None:
    [message] = messages(encode(updated(2, message="two\n\nlines\r\nid: 7\u2028é")))
    assert json.loads(message["data"])["message"] == "two\n\nlines\r\nid: 7\u2028é"


def test_a_failed_tasks_end_says_why() -> None:
    failed = row(status="failed", version=4, error_stage="parse", error_code="not_a_pdf", error_message="no header")
    _, end = messages(encode(update_of(failed)))
    assert json.loads(end["data"])["error"] == {"code": "not_a_pdf", "message": "no header", "stage": "parse"}
