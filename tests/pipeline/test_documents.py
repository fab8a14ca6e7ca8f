"""What a user sees of a document on its way from the upload to the search."""

import asyncio
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx

from deploy.local import LocalStack
from tests.support.api import SAMPLES, chunks, events, follow, process, upload
from tests.support.eventually import eventually


async def test_an_upload_is_parsed_embedded_indexed_and_found(api: httpx.AsyncClient) -> None:
    task = await process(api, SAMPLES / "05-13-pages.pdf")

    assert task["status"] == "completed"
    assert task["progress"] == 100
    assert task["task_type"] == "document_process"
    assert task["error"] is None
    assert task["retry_count"] == 0
    assert task["params"]["filename"] == "05-13-pages.pdf"
    assert task["params"]["size"] == (SAMPLES / "05-13-pages.pdf").stat().st_size
    assert len(task["params"]["sha256"]) == 64
    assert task["metadata"]["Title"] == "Introduction to parallel GP programming"
    assert task["result"]["pages"] == 13
    assert task["result"]["pages_without_text"] == 0
    assert task["result"]["chunks"] > 13
    assert task["result"]["content_length"] > 10_000
    assert task["result"]["embedding_dim"] in {256, 384}
    assert task["result"]["file"] == "05-13-pages.pdf"
    assert task["result"]["warnings"] == []
    assert task["created_at"] <= task["started_at"] <= task["completed_at"]
    for stage in ("parse", "embed", "index"):
        assert task["stages"][stage]["done"] == task["stages"][stage]["total"] >= 1
        assert task["stages"][stage]["started"] <= task["stages"][stage]["finished"]

    found = (await api.get("/search", params={"q": "how many threads does parallel GP start", "limit": 50})).json()
    [best, *_] = [hit for hit in found["hits"] if hit["document_id"] == task["result"]["document_id"]]
    assert best["filename"] == "05-13-pages.pdf"
    assert 1 <= best["first_page"] <= best["last_page"] <= 13
    assert "thread" in best["text"].lower()
    assert 0 < best["score"] <= 1


async def test_the_answer_to_an_upload_names_the_task(api: httpx.AsyncClient) -> None:
    response = await api.post("/upload", files={"file": ("x.pdf", (SAMPLES / "01-one-page.pdf").read_bytes())})

    assert response.status_code == 202
    answer = response.json()
    assert answer["status"] == "processing"
    assert answer["message"]
    assert response.headers["Location"] == f"/tasks/{answer['task_id']}"
    await follow(api, answer["task_id"])


async def test_the_stream_shows_a_large_document_move_and_never_backwards(
    api: httpx.AsyncClient, stack: LocalStack, handbook: Path
) -> None:
    shards_before = [await _shards_extracted(parser.url) for parser in stack.services["parser"]]
    stream = await follow(api, await upload(api, handbook))

    states, end = stream[:-1], stream[-1]
    progress = [event.data["progress"] for event in states]
    assert progress == sorted(progress)
    assert len(set(progress)) > 20
    versions = [event.data["version"] for event in stream]
    assert versions == sorted(versions)
    assert all(event.data["message"] for event in states)
    assert end.name == "complete"
    assert end.data["status"] == "completed"
    assert end.data["result"]["pages"] == 500

    shards = [await _shards_extracted(parser.url) for parser in stack.services["parser"]]
    assert all(after > before for before, after in zip(shards_before, shards, strict=True)), "both parsers took part"


async def test_each_gateway_streams_every_task_whichever_took_it(
    api: httpx.AsyncClient, other_api: httpx.AsyncClient, handbook: Path
) -> None:
    of_one, of_other = await asyncio.gather(upload(api, handbook), upload(other_api, handbook))
    streams = await asyncio.gather(
        *(follow(gateway, task_id) for gateway in (api, other_api) for task_id in (of_one, of_other))
    )

    for stream in streams:
        assert stream[-1].data["status"] == "completed"
        assert len({event.data["progress"] for event in stream[:-1]}) > 5, "it moved while it was watched"


async def test_a_stream_says_how_it_is_to_be_treated_and_resumed(api: httpx.AsyncClient) -> None:
    task = await process(api, SAMPLES / "03-two-column.pdf")
    path = f"/tasks/{task['task_id']}/stream"

    response = await api.get(path)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    seen = str(task["version"])
    assert f"id: {seen}\nevent: complete\n" in response.text

    assert (await api.get(path, headers={"Last-Event-ID": seen})).status_code == 204
    for nonsense in ("99999", "-1", "x", ""):
        again = await api.get(path, headers={"Last-Event-ID": nonsense})
        assert "event: complete" in again.text


async def test_a_resumed_stream_starts_after_what_was_seen(
    api: httpx.AsyncClient, other_api: httpx.AsyncClient, handbook: Path
) -> None:
    task_id = await upload(api, handbook)
    seen = ""
    async for event in events(api, task_id):
        seen = event.id
        if event.data.get("progress", 0) > 10:
            break
    resumed = [event async for event in events(other_api, task_id, last_event_id=seen)]

    assert min(event.data["version"] for event in resumed) > int(seen)
    assert resumed[-1].data["status"] == "completed"


async def test_the_same_file_twice_is_one_document_indexed_once(api: httpx.AsyncClient, stack: LocalStack) -> None:
    first = await process(api, SAMPLES / "02-four-pages-outline.pdf", "first.pdf")
    second = await process(api, SAMPLES / "02-four-pages-outline.pdf", "second.pdf")

    assert first["task_id"] != second["task_id"]
    assert first["result"]["document_id"] == second["result"]["document_id"]

    async def only_the_newer_version() -> None:
        rows = await chunks(stack, second["result"]["document_id"])
        assert {row["filename"] for row in rows} == {"second.pdf"}
        assert len(rows) == first["result"]["chunks"] == second["result"]["chunks"]

    await eventually(only_the_newer_version)


async def test_scanned_pages_are_reported(api: httpx.AsyncClient) -> None:
    task = await process(api, SAMPLES / "14-scanned-image-only.pdf")

    assert task["status"] == "completed"
    assert task["result"]["pages_without_text"] == 4
    assert task["result"]["chunks"] == 0
    assert task["result"]["warnings"] == ["no text on 4 of 4 pages: scanned?"]


async def test_a_file_name_is_kept_as_data_and_never_becomes_a_path(api: httpx.AsyncClient, stack: LocalStack) -> None:
    task = await process(api, SAMPLES / "01-one-page.pdf", "../../etc/日本語 \u202egnp.pdf")

    assert task["params"]["filename"] == "../../etc/日本語 gnp.pdf"
    blobs = Path(stack.environment["BLOB_URL"].removeprefix("file://"))
    assert (blobs / "local" / f"{task['task_id']}.pdf").is_file()


async def _shards_extracted(url: str) -> float:
    async with httpx.AsyncClient(base_url=url) as client:
        metrics = (await client.get("/metrics")).text
    line = 'paperlane_records_total{outcome="done",stage="parse",topic="pages.requested"} '
    return sum(float(text.removeprefix(line)) for text in metrics.splitlines() if text.startswith(line))


async def test_a_silent_stream_shows_signs_of_life_and_heals_a_lost_update(
    api: httpx.AsyncClient, stack: LocalStack
) -> None:
    task_id = (await process(api, SAMPLES / "01-one-page.pdf"))["task_id"]
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"])
    try:
        await connection.execute("UPDATE tasks SET status = 'running' WHERE task_id = $1", UUID(task_id))
        lines: list[str] = []
        async with asyncio.timeout(30), api.stream("GET", f"/tasks/{task_id}/stream") as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if sum(text.startswith(":") for text in lines) == 2:  # a change of which no update was published
                    await connection.execute(
                        "UPDATE tasks SET status = 'completed', version = version + 1 WHERE task_id = $1", UUID(task_id)
                    )
    finally:
        await connection.close()

    heartbeat = next(number for number, line in enumerate(lines) if line.startswith(":"))
    assert lines[heartbeat + 1] == "", "a heartbeat is a comment alone, without an id"
    assert "event: complete" in lines
