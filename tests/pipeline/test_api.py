"""The rest of the API: lists, numbers, clean-up, and what is said to bad requests."""

import os
import signal
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from deploy.local import LocalStack
from tests.pipeline.conftest import MAX_UPLOAD_BYTES
from tests.support.api import SAMPLES, follow, problem, process, upload

PDF = (SAMPLES / "01-one-page.pdf").read_bytes()


def blobs(stack: LocalStack) -> set[Path]:
    return set(Path(stack.environment["BLOB_URL"].removeprefix("file://")).rglob("*.*"))


async def test_an_unknown_task_is_not_found(api: httpx.AsyncClient) -> None:
    for path in (f"/tasks/{uuid4()}", f"/tasks/{uuid4()}/stream"):
        problem(await api.get(path), 404, "task_not_found")
    for change in ("cancel", "replay"):
        problem(await api.post(f"/tasks/{uuid4()}/{change}"), 404, "task_not_found")
    problem(await api.get("/nowhere"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/tasks/not-a-uuid", "task_id"),
        ("GET", "/tasks?status=lost", "status"),
        ("GET", "/tasks?skip=-1", "skip"),
        ("GET", "/tasks?limit=0", "limit"),
        ("GET", "/search", "q"),
        ("GET", "/search?q=", "q"),
        ("GET", "/search?q=x&limit=101", "limit"),
        ("POST", "/cleanup?days=-1", "days"),
        ("POST", "/cleanup?days=soon", "days"),
    ],
)
async def test_a_bad_parameter_is_named(api: httpx.AsyncClient, method: str, path: str, name: str) -> None:
    document = problem(await api.request(method, path), 422, "invalid_request")
    assert [error["name"] for error in document["errors"]] == [name]


async def test_a_form_without_a_file_is_refused(api: httpx.AsyncClient, stack: LocalStack) -> None:
    before = blobs(stack)
    document = problem(await api.post("/upload", files={"other": ("x.pdf", PDF)}), 422, "invalid_request")
    assert document["errors"][0]["name"] == "file"
    problem(await api.post("/upload", data={"file": "no file"}, files={"x": b""}), 422, "invalid_request")
    problem(await api.post("/upload", content=PDF), 400, "upload_malformed")
    problem(await api.post("/upload"), 400, "upload_malformed")
    assert blobs(stack) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><p>hello", "HTML"),
        (b"PK\x03\x04" + bytes(100), "ZIP"),
        (b"hello", "%PDF-"),
        (bytes(2000) + PDF, "%PDF-"),
    ],
)
async def test_what_is_no_pdf_is_refused_with_the_reason(
    api: httpx.AsyncClient, stack: LocalStack, content: bytes, reason: str
) -> None:
    before = blobs(stack)
    response = await api.post("/upload", files={"file": ("x.pdf", content, "application/pdf")})
    assert reason in problem(response, 415, "not_a_pdf")["detail"]
    assert blobs(stack) == before


async def test_a_file_over_the_limit_is_refused_and_nothing_of_it_kept(
    api: httpx.AsyncClient, stack: LocalStack
) -> None:
    before = blobs(stack)
    total = (await api.get("/tasks")).json()["total"]
    too_large = PDF + bytes(MAX_UPLOAD_BYTES + 1 - len(PDF))
    response = await api.post("/upload", files={"file": ("x.pdf", too_large)})
    assert f"{MAX_UPLOAD_BYTES:,} bytes" in problem(response, 413, "upload_too_large")["detail"]
    assert blobs(stack) == before
    assert (await api.get("/tasks")).json()["total"] == total


async def test_an_upload_that_breaks_off_leaves_nothing(api: httpx.AsyncClient, stack: LocalStack) -> None:
    before = blobs(stack)
    total = (await api.get("/tasks")).json()["total"]
    body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="x.pdf"\r\n\r\n' + PDF
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    problem(await api.post("/upload", content=body, headers=headers), 400, "upload_malformed")
    assert blobs(stack) == before
    assert (await api.get("/tasks")).json()["total"] == total


async def test_tasks_are_listed_newest_first_in_pages(api: httpx.AsyncClient) -> None:
    good = [(await process(api, PDF, f"{n}.pdf"))["task_id"] for n in range(3)]
    bad = (await process(api, SAMPLES / "17-zero-pages.pdf"))["task_id"]

    listed = (await api.get("/tasks", params={"limit": 4})).json()
    assert [task["task_id"] for task in listed["tasks"]] == [bad, *reversed(good)]
    assert listed["total"] >= 4
    page = (await api.get("/tasks", params={"skip": 1, "limit": 2})).json()
    assert [task["task_id"] for task in page["tasks"]] == [good[2], good[1]]
    assert page["total"] == listed["total"]
    failed = (await api.get("/tasks", params={"status": "failed"})).json()
    assert failed["tasks"][0]["task_id"] == bad
    assert failed["tasks"][0]["error"]["code"] == "pdf_without_pages"
    assert failed["total"] == len(failed["tasks"]) or len(failed["tasks"]) == 50


async def test_stats_health_and_metrics_count_what_was_done(api: httpx.AsyncClient) -> None:
    before = (await api.get("/stats")).json()
    await process(api, PDF)
    after = (await api.get("/stats")).json()

    assert after["tasks"]["completed"] == before["tasks"]["completed"] + 1
    assert set(after["tasks"]) == {"pending", "running", "completed", "failed", "canceled"}
    for stage in ("parse", "embed", "index"):
        numbers = after["stages"][stage]
        assert numbers["done"] == before["stages"][stage]["done"] + 1
        assert numbers["rate"] >= 1
        assert 0 < numbers["p50_seconds"] <= numbers["p95_seconds"]
        assert numbers["members"] >= 1
        assert numbers["waiting"] >= 0

    health = await api.get("/health")
    assert health.status_code == 200
    assert health.json()["ok"] is True
    names = {component["name"] for component in health.json()["components"]}
    assert names == {"database", "blobs", "broker", "parse", "embed", "index", "track"}

    metrics = (await api.get("/metrics")).text
    completed = f'task_total{{status="completed",task_type="document_process"}} {float(after["tasks"]["completed"])}'
    assert completed in metrics
    assert 'task_duration_seconds_bucket{le="+Inf",task_type="document_process"}' in metrics
    assert "\ntask_running 0.0\n" in metrics
    assert 'paperlane_stage_duration_seconds_count{stage="index"}' in metrics
    assert 'paperlane_stage_lag_records{stage="parse"}' in metrics


async def test_every_worker_answers_probes_and_exposes_metrics(stack: LocalStack) -> None:
    async with httpx.AsyncClient() as client:
        for name, replicas in stack.services.items():
            for replica in replicas:
                for probe in ("/livez", "/readyz"):
                    assert (await client.get(replica.url + probe)).status_code == 200, f"{name} {probe}"
                assert "process_cpu_seconds_total" in (await client.get(f"{replica.url}/metrics")).text


async def test_clean_up_deletes_what_is_over_with_its_file_and_keeps_the_index(
    api: httpx.AsyncClient, stack: LocalStack
) -> None:
    task = await process(api, SAMPLES / "03-two-column.pdf")
    assert (await api.post("/cleanup")).json() == {"deleted": 0}, "nothing is 30 days old"
    total = (await api.get("/tasks")).json()["total"]

    assert (await api.post("/cleanup", params={"days": 0})).json() == {"deleted": total}
    problem(await api.get(f"/tasks/{task['task_id']}"), 404, "task_not_found")
    assert not any(task["task_id"] in path.name for path in blobs(stack))
    hits = (await api.get("/search", params={"q": "two columns of text", "limit": 100})).json()["hits"]
    assert task["result"]["document_id"] in {hit["document_id"] for hit in hits}


async def test_openapi_describes_every_call_with_its_problems(api: httpx.AsyncClient) -> None:
    document = (await api.get("/openapi.json")).json()
    calls = {(method, path): call for path, item in document["paths"].items() for method, call in item.items()}

    assert set(calls) == {
        ("post", "/upload"),
        ("get", "/tasks"),
        ("get", "/tasks/{task_id}"),
        ("get", "/tasks/{task_id}/stream"),
        ("post", "/tasks/{task_id}/cancel"),
        ("post", "/tasks/{task_id}/replay"),
        ("get", "/search"),
        ("get", "/stats"),
        ("post", "/cleanup"),
        ("get", "/health"),
        ("get", "/metrics"),
    }
    assert all(call["summary"] and call["description"] for call in calls.values())
    for (method, path), call in calls.items():
        [good] = {"200", "202"} & set(call["responses"])
        [content] = call["responses"][good]["content"].values()
        assert content["example"], f"{method} {path} has no example"
    for change in ("cancel", "replay"):
        assert {"404", "409", "422"} <= set(calls["post", f"/tasks/{{task_id}}/{change}"]["responses"])
    form = calls["post", "/upload"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert {"202", "400", "413", "415", "422", "503"} <= set(calls["post", "/upload"]["responses"])
    assert {"Problem", "InvalidField"} <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in str(document["paths"])


async def test_an_upload_while_the_broker_is_away_is_accepted_and_completed_later(
    api: httpx.AsyncClient, stack: LocalStack
) -> None:
    kafka = stack.servers["kafka"].pid
    assert kafka is not None
    os.kill(kafka, signal.SIGKILL)  # the stack starts it again, which takes it some seconds

    task_id = await upload(api, PDF)
    assert (await api.get(f"/tasks/{task_id}")).json()["status"] == "pending"
    assert (await follow(api, task_id))[-1].data["status"] == "completed"
