from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic import SecretStr

from deploy.local import ports
from services.gateway.tasks import Tasks
from shared.database.pool import Pool, open_pool, ping
from shared.errors import DependencyUnavailableError
from shared.settings import DatabaseSettings
from shared.tasks import TaskRow, TaskStatus
from tests.support.task_events import SECOND, START, new_task


async def insert(tasks: Tasks, count: int, *, owner: str = "owner", status: str = "pending") -> list[TaskRow]:
    """Insert tasks one second apart; return them with the newest first."""
    rows = [replace(new_task(owner, at=START + n * SECOND), status=status) for n in range(count)]
    for row in rows:
        await tasks.insert(row)
    return rows[::-1]


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
    await tasks.mark_dispatched(task.task_id, START + SECOND)
    assert await tasks.get("owner", task.task_id) == replace(task, dispatched_at=START + SECOND)


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
            tasks.mark_dispatched(uuid4(), START),
            tasks.get("owner", uuid4()),
            tasks.get_many([uuid4()]),
            tasks.page("owner", None, skip=0, limit=1),
            tasks.count_by_status(),
        ):
            with pytest.raises(DependencyUnavailableError, match="the database does not answer"):
                await attempt
    finally:
        await away.close()
