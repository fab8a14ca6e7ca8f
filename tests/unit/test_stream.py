import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from services.gateway.hub import Hub, encode
from services.gateway.stream import frames, resume_after
from shared.tasks import TaskRow, update_of
from tests.support.builders import OTHER_TASK, OWNER, TASK, TasksInMemory, patience, row, updated


class Racing(TasksInMemory):
    """Tasks during whose snapshot something happens."""

    def __init__(self, *rows: TaskRow) -> None:
        super().__init__(*rows)
        self.meanwhile: Callable[[], None] = lambda: None

    @override
    async def get(self, owner: str, task_id: UUID) -> TaskRow | None:
        task = await super().get(owner, task_id)
        self.meanwhile()
        return task


class Client:
    """Reads the stream of a task."""

    def __init__(self, hub: Hub, tasks: TasksInMemory, *, owner: str = OWNER, after: int = 0) -> None:
        self.stream = cast("AsyncGenerator[bytes]", frames(hub, tasks, owner, TASK, after))

    async def next(self) -> bytes:
        async with patience():
            return await anext(self.stream)

    async def rest(self) -> list[bytes]:
        async with patience():
            return [payload async for payload in self.stream]


def running(version: int) -> TaskRow:
    return row(status="running", version=version, pages=4)


def completed(version: int) -> TaskRow:
    return row(status="completed", version=version, pages=4)


def payload(task: TaskRow) -> bytes:
    return encode(update_of(task)).payload


async def test_the_snapshot_comes_first_then_the_updates_until_the_end() -> None:
    tasks = TasksInMemory(running(3))
    hub = Hub(tasks)
    client = Client(hub, tasks)
    assert await client.next() == payload(running(3))
    hub.deliver(updated(4))
    assert await client.next() == encode(updated(4)).payload
    hub.deliver(update_of(completed(5)))
    assert await client.rest() == [payload(completed(5))]


async def test_the_stream_of_a_task_that_is_over_is_its_end() -> None:
    tasks = TasksInMemory(completed(9))
    [end] = await Client(Hub(tasks), tasks).rest()
    assert end.count(b"event: complete\n") == 1
    assert end.count(b"id: ") == 1
    assert end.index(b"id: 9\nevent: complete") > end.index(b'"progress":100')


async def test_an_update_between_watching_and_the_snapshot_is_not_lost() -> None:
    tasks = Racing(running(3))
    hub = Hub(tasks)
    tasks.meanwhile = lambda: hub.deliver(update_of(completed(4)))
    assert await Client(hub, tasks).rest() == [payload(completed(4))]


async def test_an_update_that_the_snapshot_has_already_is_not_doubled() -> None:
    tasks = Racing(running(4))
    hub = Hub(tasks)
    tasks.meanwhile = lambda: hub.deliver(update_of(running(4)))
    client = Client(hub, tasks)
    assert await client.next() == payload(running(4))
    hub.deliver(update_of(completed(5)))
    assert await client.rest() == [payload(completed(5))]


async def test_an_update_older_than_the_snapshot_is_not_shown() -> None:
    tasks = Racing(running(4))
    hub = Hub(tasks)
    tasks.meanwhile = lambda: hub.deliver(updated(2))
    client = Client(hub, tasks)
    assert await client.next() == payload(running(4))
    hub.deliver(updated(3))
    hub.deliver(update_of(completed(5)))
    assert await client.rest() == [payload(completed(5))]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
async def test_states_come_in_the_order_of_their_versions_however_they_arrive(arrivals: list[int]) -> None:
    tasks = TasksInMemory(running(1))
    hub = Hub(tasks)
    client = Client(hub, tasks)
    seen = [await client.next()]
    reading = asyncio.create_task(client.rest())
    for version in arrivals:
        hub.deliver(updated(version))
        await asyncio.sleep(0)
    hub.deliver(update_of(completed(21)))
    seen += await reading
    versions = [int(payload.split(b"id: ")[1].split(b"\n")[0]) for payload in seen]
    assert versions == sorted(set(versions))
    assert versions[-1] == 21
    assert max(arrivals) in versions


async def test_a_client_that_comes_back_gets_only_what_is_newer() -> None:
    tasks = TasksInMemory(running(6))
    hub = Hub(tasks)
    client = Client(hub, tasks, after=6)
    first = asyncio.create_task(client.next())
    await asyncio.sleep(0)
    assert not first.done()
    hub.deliver(updated(7))
    assert await first == encode(updated(7)).payload
    await client.stream.aclose()


async def test_a_client_that_missed_updates_gets_the_snapshot() -> None:
    tasks = TasksInMemory(completed(6))
    assert await Client(Hub(tasks), tasks, after=4).rest() == [payload(completed(6))]


async def test_a_resync_ends_a_stream_whose_last_update_was_lost() -> None:
    tasks = TasksInMemory(running(3))
    hub = Hub(tasks)
    client = Client(hub, tasks)
    await client.next()
    tasks.rows[TASK] = completed(4)
    await hub.resync()
    assert await client.rest() == [payload(completed(4))]


@pytest.mark.parametrize("owner", [OWNER, "mallory"])
async def test_a_task_that_is_gone_or_anothers_ends_the_stream_without_a_word(owner: str) -> None:
    tasks = TasksInMemory(row(task_id=OTHER_TASK) if owner == OWNER else running(3))
    hub = Hub(tasks)
    assert await Client(hub, tasks, owner=owner).rest() == []
    assert not hub._slots


async def test_no_watcher_is_left_after_the_end() -> None:
    tasks = TasksInMemory(completed(3))
    hub = Hub(tasks)
    await Client(hub, tasks).rest()
    assert not hub._slots


async def test_no_watcher_is_left_after_a_client_closed_the_stream() -> None:
    tasks = TasksInMemory(running(3))
    hub = Hub(tasks)
    client = Client(hub, tasks)
    await client.next()
    assert hub._slots
    await client.stream.aclose()
    assert not hub._slots


async def test_no_watcher_is_left_after_a_waiting_client_was_cancelled() -> None:
    tasks = TasksInMemory(running(3))
    hub = Hub(tasks)
    client = Client(hub, tasks)
    await client.next()
    waiting = asyncio.create_task(client.next())
    await asyncio.sleep(0)
    assert hub._slots
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not hub._slots


async def test_no_watcher_is_left_where_the_database_is_away() -> None:
    tasks = Racing(running(3))
    hub = Hub(tasks)

    def away() -> None:
        raise ConnectionError("no database")

    tasks.meanwhile = away
    with pytest.raises(ConnectionError):
        await Client(hub, tasks).next()
    assert not hub._slots


@pytest.mark.parametrize(
    ("header", "seen"),
    [
        (None, 0),
        ("", 0),
        ("0", 0),
        ("4", 4),
        ("7", 7),
        ("8", 0),
        ("9" * 18, 0),
        ("9" * 19, 0),
        ("9" * 5000, 0),
        ("-1", 0),
        ("4.0", 0),
        (" 4", 0),
        ("4\n", 0),
        ("٤", 0),
        ("²", 0),
        ("abc", 0),
        ("1_0", 0),
    ],
)
def test_last_event_id_counts_only_where_it_is_a_version_that_there_was(header: str | None, seen: int) -> None:
    assert resume_after(running(7), header) == seen
