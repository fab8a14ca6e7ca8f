"""Cancellation as a user sees it; what is replayed needs a provider that fails, as in the tests of faults."""

import asyncio
from pathlib import Path

import asyncpg
import httpx
import pytest

from deploy.local import LocalStack
from tests.support.api import SAMPLES, Json, events, follow, problem, process, upload
from tests.support.eventually import eventually
from tests.support.kafka_log import lags


async def indexed(stack: LocalStack, task_id: str) -> int:
    """Count the chunks that the index has of a task."""
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"])
    try:
        return int(await connection.fetchval("SELECT count(*) FROM chunks WHERE task_id = $1", task_id))
    finally:
        await connection.close()


async def nothing_to_do(stack: LocalStack) -> None:
    assert await lags(stack.environment["KAFKA_BOOTSTRAP_SERVERS"]) == {}


async def shown(api: httpx.AsyncClient, task_id: str) -> Json:
    task: Json = (await api.get(f"/tasks/{task_id}")).json()
    return task


async def test_a_task_at_work_is_canceled_at_once_and_nothing_of_it_stays(
    api: httpx.AsyncClient, other_api: httpx.AsyncClient, stack: LocalStack, handbook: Path
) -> None:
    content = await asyncio.to_thread(handbook.read_bytes)
    answers: list[httpx.Response] = []
    task_id, other = await upload(api, content + b"\n%% canceled\n"), await upload(api, content + b"\n%% kept\n")
    async for event in events(api, task_id):
        last = event
        if not answers and event.data["stages"]["index"]["done"]:
            answers.append(await other_api.post(f"/tasks/{task_id}/cancel"))
            at_once = await shown(api, task_id)

    [answer] = answers
    assert (answer.status_code, answer.json()["status"], at_once["status"]) == (200, "canceled", "canceled")
    assert 0 < at_once["progress"] < 100
    assert (last.name, last.data["status"], last.data["result"]) == ("complete", "canceled", None)
    assert [event.data["status"] for event in await follow(other_api, task_id)] == ["canceled", "canceled"]
    kept = (await follow(api, other))[-1].data
    assert kept["status"] == "completed"
    await eventually(lambda: nothing_to_do(stack))
    assert await indexed(stack, task_id) == 0
    assert await indexed(stack, other) == kept["result"]["chunks"]
    assert await shown(api, task_id) == at_once


@pytest.mark.parametrize(("sample", "status"), [("01-one-page.pdf", "completed"), ("17-zero-pages.pdf", "failed")])
async def test_a_task_that_is_over_is_not_canceled(api: httpx.AsyncClient, sample: str, status: str) -> None:
    task = await process(api, SAMPLES / sample)
    refusal = problem(await api.post(f"/tasks/{task['task_id']}/cancel"), 409, "task_conflict")
    assert f"the task is {status} already" in refusal["detail"]
    assert await shown(api, task["task_id"]) == task


async def test_only_a_failed_task_is_replayed(api: httpx.AsyncClient) -> None:
    task = await process(api, SAMPLES / "01-one-page.pdf")
    refusal = problem(await api.post(f"/tasks/{task['task_id']}/replay"), 409, "task_conflict")
    assert "the task is completed" in refusal["detail"]


async def test_a_document_that_is_at_fault_fails_again_when_it_is_replayed(
    api: httpx.AsyncClient, stack: LocalStack
) -> None:
    task = await process(api, SAMPLES / "17-zero-pages.pdf")
    answer = await api.post(f"/tasks/{task['task_id']}/replay")
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (202, "running", None)
    [*_, end] = await follow(api, task["task_id"])
    assert (end.name, end.data["status"], end.data["error"]) == ("complete", "failed", task["error"])
    again = await shown(api, task["task_id"])
    assert again["version"] > task["version"]
    assert again["completed_at"] > task["completed_at"]
