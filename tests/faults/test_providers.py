"""An embedding provider that fails in every way: what passes is tried again, the rest fails at once, others go on."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import count, repeat

import httpx
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from typer.testing import CliRunner

from cli.main import app
from deploy.local import StackOptions
from shared.tasks import TaskStatus
from shared.topics import CHUNKS_EXTRACTED
from tests.faults.documents import Document
from tests.faults.ledger import Ledger, Upload
from tests.faults.trial import Trial
from tests.support.api import Event, Json, events
from tests.support.openai_server import KEY, Fault, OpenAIServer
from tests.support.pdf_writer import pdf_of
from tests.support.stack_thread import StackThread

RETRY_AFTER = timedelta(seconds=4)
"""What the provider asks for: longer than the first delay, so that it shows whose wish counts."""

ATTEMPTS = 3

ENVIRONMENT = {
    "RETRY_DELAYS": "1,2",
    "EMBEDDER": "openai",
    "OPENAI_API_KEY": KEY,
    "EMBEDDING_DIM": "8",
    "EMBEDDING_TIMEOUT": "2",
    "EMBEDDING_BATCH": "1",  # a call for each chunk, so that it shows who asked for what
    "EMBEDDING_CONCURRENCY": "8",
    "SSE_HEARTBEAT": "1",
}

PASSING = {
    Fault.BROKEN: "dependency_unavailable",
    Fault.OVERLOADED: "dependency_unavailable",
    Fault.HANG: "dependency_unavailable",
    Fault.TRUNCATED: "dependency_unavailable",
    Fault.NO_JSON: "dependency_unavailable",
    Fault.SHORT_BODY: "dependency_unavailable",
    Fault.BAD_BASE64: "dependency_unavailable",
    Fault.RATE_LIMITED_SILENTLY: "rate_limited",
}
"""Faults that another try may help against, with the code of a task against which it did not."""

LASTING = {
    Fault.UNAUTHORIZED: "embedding_rejected",
    Fault.INVALID: "embedding_rejected",
    Fault.WRONG_DIMENSION: "embedding_mismatch",
    Fault.TOO_FEW: "embedding_mismatch",
    Fault.NOT_A_NUMBER: "embedding_mismatch",
}

numbers = count()


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        running.retry_after = RETRY_AFTER
        yield running


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory, provider: OpenAIServer) -> Iterator[StackThread]:
    """A stack that asks this provider."""
    environment = ENVIRONMENT | {"OPENAI_BASE_URL": provider.url}
    with StackThread(StackOptions(data=tmp_path_factory.mktemp("stack"), port=0, env=environment)) as running:
        yield running


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger()


def page(name: str) -> Document:
    """Return a document of one chunk, with a word of its own."""
    return Document(name, pdf_of(f"What the provider makes of {name}.").render())


def words(faults: Iterable[Fault]) -> dict[Fault, str]:
    return {fault: f"{fault.value}-{next(numbers):03}" for fault in faults}


def failing(document: Document, code: str) -> Document:
    return Document(document.kind, document.content, TaskStatus.FAILED, code)


async def shown(trial: Trial, upload: Upload) -> Json:
    async with httpx.AsyncClient(base_url=trial.where.gateway) as api:
        task: Json = (await api.get(f"/tasks/{upload.task_id}")).json()
        return task


async def followed(trial: Trial, upload: Upload) -> list[Event]:
    """Return all that a watcher sees of a task, from its upload to its end."""
    async with httpx.AsyncClient(base_url=trial.where.gateway, timeout=None) as api:  # noqa: S113  the test has a limit
        return [event async for event in events(api, str(upload.task_id))]


async def test_a_rate_limit_is_waited_for_and_shown_meanwhile(trial: Trial, provider: OpenAIServer) -> None:
    [word] = words([Fault.RATE_LIMITED]).values()
    provider.spoilt[word] = iter([Fault.RATE_LIMITED])
    [upload] = await trial.load.upload([page(word)])
    seen = await followed(trial, upload)
    waiting = next(event.data for event in seen if event.data.get("next_retry_at"))
    assert (waiting["status"], waiting["retry_count"]) == ("running", 1)
    failed = r"embedding part 1/1 failed: text-embedding-3-small: the server answered 429: Rate limit reached"
    assert re.fullmatch(rf"{failed}; trying again (in [1-4] s|now) \(2 of {ATTEMPTS}\)", waiting["message"])
    first, second = provider.asked(word)
    assert second - first >= RETRY_AFTER.total_seconds()
    task = await shown(trial, upload)
    assert (task["status"], task["retry_count"], task["next_retry_at"]) == ("completed", 1, None)
    assert datetime.fromisoformat(task["completed_at"]) >= datetime.fromisoformat(waiting["next_retry_at"])
    await trial.verdict("provider answers 429 with Retry-After", faults=1)


async def test_what_passes_is_tried_again_until_it_is_well(trial: Trial, provider: OpenAIServer) -> None:
    marked = words(PASSING)
    provider.spoilt |= {word: iter([fault]) for fault, word in marked.items()}
    uploads = await trial.load.upload(map(page, marked.values()))
    await trial.verdict("provider fails once in each way that passes", faults=len(marked))
    for upload, word in zip(uploads, marked.values(), strict=True):
        task = await shown(trial, upload)
        assert (task["status"], task["retry_count"]) == ("completed", 1), word
        assert len(provider.asked(word)) == 2, word


async def test_what_lasts_fails_at_once_and_nobody_else_with_it(trial: Trial, provider: OpenAIServer) -> None:
    marked, well = words(LASTING), words([Fault.BROKEN, Fault.HANG])
    provider.spoilt |= {word: repeat(fault) for fault, word in marked.items()}
    bad = [failing(page(word), LASTING[fault]) for fault, word in marked.items()]
    uploads = await trial.load.upload([*bad, *map(page, well.values())])
    await trial.verdict("provider refuses, or answers with another count or dimension", faults=len(marked))
    for upload, word in zip(uploads, marked.values(), strict=False):
        task = await shown(trial, upload)
        assert (task["retry_count"], task["error"]["stage"]) == (0, "embed")
        assert len(provider.asked(word)) == 1
        assert KEY not in str(task)
    for word in well.values():
        assert len(provider.asked(word)) == 1


async def test_what_never_passes_fails_in_the_end_and_a_replay_completes_it(
    trial: Trial, provider: OpenAIServer
) -> None:
    marked = words([Fault.HANG, Fault.BROKEN, Fault.RATE_LIMITED_SILENTLY])
    [well] = words([Fault.NO_JSON]).values()
    provider.spoilt |= {word: repeat(fault) for fault, word in marked.items()}
    bad = [failing(page(word), PASSING[fault]) for fault, word in marked.items()]
    *uploads, other = await trial.load.upload([*bad, page(well)])
    await trial.verdict("provider hangs or fails at every attempt", faults=ATTEMPTS * len(marked))
    completed = datetime.fromisoformat((await shown(trial, other))["completed_at"])
    for upload, word in zip(uploads, marked.values(), strict=True):
        task = await shown(trial, upload)
        assert task["retry_count"] == ATTEMPTS - 1
        assert completed < datetime.fromisoformat(task["completed_at"])
        assert len(provider.asked(word)) == ATTEMPTS

    provider.spoilt.clear()
    failed = [upload for upload in trial.ledger.uploads if TaskStatus.FAILED in upload.ends]
    told = await dlq_replay(trial)
    for upload in failed:
        assert f"{upload.task_id}: replayed" in told
        upload.ends, upload.last_seen = frozenset({TaskStatus.COMPLETED}), None
    await trial.verdict("provider is well again, and what failed is replayed", faults=0)
    assert all(len(provider.asked(word)) == ATTEMPTS + 1 for word in marked.values())


async def test_only_the_part_that_failed_is_embedded_again(trial: Trial, provider: OpenAIServer) -> None:
    first, bad, last = (f"part-{next(numbers):03}" for _ in range(3))
    provider.spoilt[bad] = iter([Fault.BROKEN, Fault.TRUNCATED])
    [upload] = await trial.load.upload([of_three_shards([first, bad, last])])
    seen = await followed(trial, upload)
    waiting = [event.data["message"] for event in seen if event.data.get("next_retry_at")]
    assert any(message.startswith("embedding part 1/1 of shard 2/3 failed: ") for message in waiting), waiting
    await trial.verdict("provider fails twice for one part of three", faults=2)
    asked = {word: len(provider.asked(word)) for word in (first, bad, last)}
    assert asked == {first: 1, bad: 3, last: 1}
    assert (await shown(trial, upload))["retry_count"] == 2


@pytest.mark.parametrize("kept", [True, False], ids=["from its dead letter", "from the PDF"])
async def test_only_the_part_that_failed_is_embedded_again_by_a_replay(
    trial: Trial, provider: OpenAIServer, *, kept: bool
) -> None:
    first, bad, last = (f"part-{next(numbers):03}" for _ in range(3))
    provider.spoilt[bad] = iter([Fault.UNAUTHORIZED])
    [upload] = await trial.load.upload([failing(of_three_shards([first, bad, last]), "embedding_rejected")])
    await trial.verdict("provider refuses one part of three", faults=1)
    if not kept:
        await forget(trial, CHUNKS_EXTRACTED.dead_letters)
    async with httpx.AsyncClient(base_url=trial.where.gateway) as api:
        answer = await api.post(f"/tasks/{upload.task_id}/replay")
        assert (answer.status_code, answer.json()["status"], answer.json()["error"]) == (202, "running", None)
    upload.ends, upload.last_seen = frozenset({TaskStatus.COMPLETED}), None
    assert (await followed(trial, upload))[-1].data["status"] == "completed"
    await trial.verdict("provider is well again, and one part of three is replayed", faults=0)
    asked = {word: len(provider.asked(word)) for word in (first, bad, last)}
    assert asked == {first: 1, bad: 2, last: 1}


def of_three_shards(words: Sequence[str]) -> Document:
    """Return a document of as many pages as make three shards, each with one line of text and so one part."""
    lines = [""] * 129
    for shard, word in enumerate(words):
        lines[shard * 43] = f"What the provider makes of {word}."
    return Document("three shards", pdf_of(*lines).render())


async def forget(trial: Trial, topic: str) -> None:
    """Delete all records of a topic, as Kafka does once they are old."""
    admin = AIOKafkaAdminClient(bootstrap_servers=trial.stack.environment["KAFKA_BOOTSTRAP_SERVERS"])
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=-1)})
    finally:
        await admin.close()


async def dlq_replay(trial: Trial) -> Sequence[str]:
    environment: Mapping[str, str] = {**trial.stack.environment, "PAPERLANE_URL": trial.where.gateway}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["dlq", "replay"], env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()
