import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from deploy.local import ports
from services.gateway.tasks import Tasks
from shared.database.durations import Durations, read_durations
from shared.database.pool import Pool, acquire, open_pool, ping
from shared.errors import DependencyUnavailableError
from shared.settings import DatabaseSettings
from shared.tasks import FINAL, TaskRow, TaskStatus
from tests.support.task_events import SECOND, START, current, new_task


async def insert(tasks: Tasks, count: int, *, owner: str = "owner", status: str = "pending") -> list[TaskRow]:
    """Insert tasks one second apart; return them with the newest first."""
    rows = [replace(new_task(owner, at=START + n * SECOND), status=status) for n in range(count)]
    for row in rows:
        await tasks.insert(row)
    return rows[::-1]


async def durations(pool: Pool) -> dict[str, Durations]:
    async with acquire(pool) as connection:
        return await read_durations(connection, "task")


async def test_a_task_reads_back_as_it_was_inserted_with_every_column(tasks: Tasks) -> None:
    task = replace(
        new_task("sørén"),
        filename='"quoted" name\u2028.pdf',
        status="failed",
        metadata={"title": "Ünïcode", "author": ""},
        pages=3,
        chunks=2,
        model="m",
        completed_at=START + timedelta(microseconds=1),
        error_code="pdf_corrupt",
        size=2**40,
    )
    await tasks.insert(task)
    assert await tasks.get("sørén", task.task_id) == task


async def test_the_newest_come_first_page_by_page_and_all_are_counted(tasks: Tasks) -> None:
    rows = await insert(tasks, 5)
    assert await tasks.page("owner", None, skip=0, limit=2) == (5, rows[:2])
    assert await tasks.page("owner", None, skip=2, limit=2) == (5, rows[2:4])
    assert await tasks.page("owner", None, skip=4, limit=2) == (5, rows[4:])
    assert await tasks.page("owner", None, skip=5, limit=2) == (5, [])


async def test_tasks_of_the_same_moment_are_on_one_page_each(tasks: Tasks) -> None:
    rows = [new_task() for _ in range(6)]
    for row in rows:
        await tasks.insert(row)
    seen = [(await tasks.page("owner", None, skip=skip, limit=1))[1][0].task_id for skip in range(6)]
    assert sorted(seen) == sorted(row.task_id for row in rows)


async def test_a_status_narrows_both_the_page_and_the_count(tasks: Tasks) -> None:
    await insert(tasks, 3)
    failed = await insert(tasks, 2, status="failed")
    assert await tasks.page("owner", TaskStatus.FAILED, skip=0, limit=10) == (2, failed)
    assert await tasks.page("owner", TaskStatus.CANCELED, skip=0, limit=10) == (0, [])


async def test_nobody_sees_what_is_anothers(tasks: Tasks) -> None:
    (own,), (other,) = await insert(tasks, 1, owner="ann"), await insert(tasks, 1, owner="bob")
    assert await tasks.get("ann", own.task_id) == own
    assert await tasks.get("ann", other.task_id) is None
    assert await tasks.page("ann", None, skip=0, limit=10) == (1, [own])
    assert (await tasks.count_by_status("ann"))[TaskStatus.PENDING] == 1


async def test_counts_name_every_status_for_one_owner_or_all(tasks: Tasks) -> None:
    await insert(tasks, 2, owner="ann")
    await insert(tasks, 1, owner="ann", status="running")
    await insert(tasks, 1, owner="bob", status="completed")
    nothing = dict.fromkeys(TaskStatus, 0)
    assert await tasks.count_by_status("ann") == {**nothing, TaskStatus.PENDING: 2, TaskStatus.RUNNING: 1}
    assert await tasks.count_by_status("nobody") == nothing
    assert sum((await tasks.count_by_status()).values()) == 4


async def test_many_are_read_at_once_whoever_owns_them(tasks: Tasks) -> None:
    rows = [*await insert(tasks, 2, owner="ann"), *await insert(tasks, 1, owner="bob")]
    found = await tasks.get_many([*(row.task_id for row in rows), uuid4()])
    assert sorted(found, key=lambda row: row.task_id) == sorted(rows, key=lambda row: row.task_id)
    assert await tasks.get_many([]) == []


async def test_marking_as_dispatched_changes_nothing_else(tasks: Tasks) -> None:
    (task,) = await insert(tasks, 1)
    await tasks.mark_dispatched(task, START + SECOND)
    assert await tasks.get("owner", task.task_id) == replace(task, dispatched_at=START + SECOND)


async def test_a_task_that_is_not_over_is_canceled_and_goes_into_the_outbox(tasks: Tasks) -> None:
    for status in ("pending", "running"):
        task = replace(new_task(), status=status, version=7, dispatched_at=START, next_retry_at=START, retry_count=1)
        await tasks.insert(task)
        at = START + SECOND
        over = replace(task, status="canceled", version=8, dispatched_at=None, completed_at=at, updated_at=at)
        assert await tasks.cancel("owner", task.task_id, at) == replace(over, next_retry_at=None)
        assert await current(tasks, task) == replace(over, next_retry_at=None)


@pytest.mark.parametrize("status", sorted(FINAL))
async def test_a_task_that_is_over_is_not_canceled(tasks: Tasks, pool: Pool, status: str) -> None:
    (task,) = await insert(tasks, 1, status=status)
    assert await tasks.cancel("owner", task.task_id, START) is None
    assert await current(tasks, task) == task
    assert await durations(pool) == {}


async def test_a_canceled_task_is_counted_once_with_the_time_that_it_took(tasks: Tasks, pool: Pool) -> None:
    (task,) = await insert(tasks, 1)
    attempts = [tasks.cancel("owner", task.task_id, START + SECOND * n) for n in (1, 2, 3)]
    rows = await asyncio.gather(*attempts)
    [row] = [row for row in rows if row]
    assert row.completed_at
    took = (row.completed_at - START).total_seconds()
    counted = (await durations(pool))["document_process/canceled"]
    assert (counted.total, counted.seconds) == (1, took)


@pytest.mark.parametrize("status", ["pending", "running", "completed", "canceled"])
async def test_only_a_failed_task_is_reopened(tasks: Tasks, status: str) -> None:
    (task,) = await insert(tasks, 1, status=status)
    assert await tasks.reopen("owner", task.task_id, START) is None
    assert await current(tasks, task) == task


async def test_a_failed_task_is_reopened_without_its_error_and_goes_into_the_outbox(tasks: Tasks) -> None:
    error: dict[str, Any] = {"error_stage": "embed", "error_code": "x", "error_message": "y", "failed_at": START}
    task = replace(new_task(), version=7, completed_at=START, alerted_at=START, redispatched_at=START, embed_done=3)
    await tasks.insert(replace(task, status="failed", dispatched_at=START, **error))
    reopened = await tasks.reopen("owner", task.task_id, START + SECOND)
    again = replace(task, status="running", version=8, updated_at=START + SECOND, replays=1, completed_at=None)
    assert reopened == replace(again, alerted_at=None, redispatched_at=None)
    assert await current(tasks, task) == reopened
    assert await tasks.reopen("owner", task.task_id, START) is None


async def test_nobody_cancels_or_reopens_what_is_anothers(tasks: Tasks) -> None:
    (running,), (failed,) = await insert(tasks, 1, status="running"), await insert(tasks, 1, status="failed")
    assert await tasks.cancel("mallory", running.task_id, START) is None
    assert await tasks.reopen("mallory", failed.task_id, START) is None
    assert await current(tasks, running) == running
    assert await current(tasks, failed) == failed


async def test_a_mark_that_comes_late_leaves_in_the_outbox_what_was_put_there_since(tasks: Tasks) -> None:
    (uploaded,), (failed,) = await insert(tasks, 1), await insert(tasks, 1, status="failed")
    canceled = await tasks.cancel("owner", uploaded.task_id, START)
    reopened = await tasks.reopen("owner", failed.task_id, START)
    for late in (uploaded, failed):
        await tasks.mark_dispatched(late, START + SECOND)
        assert (await current(tasks, late)).dispatched_at is None
    assert canceled
    assert reopened
    for row in (canceled, reopened):
        await tasks.mark_dispatched(row, START + SECOND)
        assert (await current(tasks, row)).dispatched_at == START + SECOND


async def test_without_a_database_every_method_says_so(nothing_left_running: None) -> None:
    (port,) = ports.pick(1)
    away: Pool = await open_pool(
        DatabaseSettings(database_url=SecretStr(f"postgresql://nobody:nothing@127.0.0.1:{port}/none"))
    )
    tasks = Tasks(away)
    try:
        assert not await ping(away)
        for attempt in (
            tasks.insert(new_task()),
            tasks.mark_dispatched(new_task(), START),
            tasks.cancel("owner", uuid4(), START),
            tasks.reopen("owner", uuid4(), START),
            tasks.get("owner", uuid4()),
            tasks.get_many([uuid4()]),
            tasks.page("owner", None, skip=0, limit=1),
            tasks.count_by_status(),
        ):
            with pytest.raises(DependencyUnavailableError, match="the database does not answer"):
                await attempt
    finally:
        await away.close()
