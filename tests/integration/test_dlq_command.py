import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from aiokafka.structs import RecordMetadata
from typer.testing import CliRunner

from cli.main import app
from deploy.local import StackOptions
from services.gateway.tasks import Tasks
from shared.broker import Record
from shared.clock import now
from shared.dead_letters import DeadLetters
from shared.errors import EmbeddingRejectedError, UndecodableRecordError
from shared.events import DeadLetter
from shared.kafka import Publisher
from shared.retry import route
from shared.settings import KafkaSettings
from shared.tasks import TaskRow
from shared.topics import CHUNKS_EXTRACTED, DOCUMENTS_COMPLETED, TASK_CONTROL, TASK_EVENTS, Topic
from tests.support.builders import extracted, record
from tests.support.eventually import before_long
from tests.support.kafka_lab import KafkaLab
from tests.support.stack_thread import StackThread
from tests.support.task_events import new_task

COMMAND_PATIENCE = timedelta(seconds=60)
"""A command opens and closes a few connections one after the other, which takes long on a busy machine."""

REJECTED = EmbeddingRejectedError("the server answered 401: no such key")
UNDECODABLE = UndecodableRecordError("no DocumentCompleted: the record: Field required")
HOSTILE = b"\x1b]0;owned\x07\x1b[2J [red]\xff\x00"


@dataclass(frozen=True)
class Answer:
    """What a user sees."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Paperlane:
    """The command, with the address of a Kafka and a gateway in its environment."""

    environment: dict[str, str]

    async def __call__(self, *words: object) -> Answer:
        command = partial(CliRunner().invoke, app, list(map(str, words)), env=self.environment)
        result = await before_long(asyncio.to_thread(command), COMMAND_PATIENCE)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    def but(self, **changes: str) -> "Paperlane":
        return Paperlane(self.environment | changes)


@pytest.fixture(scope="module")
def gateway(stack_thread: StackThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = stack_thread.stack.environment
    options = StackOptions(
        data=tmp_path_factory.mktemp("gateway"), port=0, services=("gateway",), env=environment, migrate=()
    )
    with StackThread(options) as running:
        yield running.stack.url


@pytest.fixture
def paperlane(stack_thread: StackThread, gateway: str) -> Paperlane:
    servers = stack_thread.stack.environment["KAFKA_BOOTSTRAP_SERVERS"]
    return Paperlane({"KAFKA_BOOTSTRAP_SERVERS": servers, "PAPERLANE_URL": gateway})


@pytest.fixture
def die(publisher: Publisher) -> "Dying":
    return Dying(publisher)


class Dying:
    """Writes dead letters, as a stage does."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def __call__(self, topic: Topic, of: Record, error: Exception = UNDECODABLE) -> RecordMetadata:
        decision = route(replace(of, topic=topic.name), error, topic=topic, now=now(), delays=())
        [position] = await self._publisher.publish([decision.record])
        return position


async def inserted(tasks: Tasks, **changes: object) -> TaskRow:
    task = replace(new_task("local"), **changes)  # type: ignore[arg-type]  # columns of a row
    await tasks.insert(task)
    return task


async def failed(tasks: Tasks) -> TaskRow:
    reason = {"error_stage": "embed", "error_code": "embedding_rejected", "error_message": "no such key"}
    return await inserted(tasks, status="failed", failed_at=now(), completed_at=now(), dispatched_at=now(), **reason)


def part_of(task_id: UUID) -> Record:
    return record(extracted(task_id=task_id, shard=0, part=3), key=f"{task_id}:0:3".encode())


def where(position: RecordMetadata) -> str:
    return f"{position.topic} {position.partition} {position.offset}"


def told_of(position: RecordMetadata, answer: Answer) -> list[str]:
    """Return the lines of a list that tell of a dead letter."""
    lines = answer.out.splitlines()
    [first] = [n for n, line in enumerate(lines) if line.startswith(f"{where(position)}  ")]
    return lines[first : first + 3]


async def test_the_list_tells_where_when_why_and_whose(paperlane: Paperlane, die: Dying, tasks: Tasks) -> None:
    task = await failed(tasks)
    position = await die(CHUNKS_EXTRACTED, replace(part_of(task.task_id), headers=[("attempt", b"2")]), REJECTED)
    answer = await paperlane("dlq", "list", "chunks.extracted.dlq")
    assert (answer.status, answer.err) == (0, "")
    first, second, third = told_of(position, answer)
    assert f"  {now():%Y-%m-%d}" in first
    assert first.endswith("  attempt 2  embedding_rejected  task failed")
    assert second.split() == ["task", f"{task.task_id},", "key", f"{task.task_id}:0:3"]
    assert third.strip() == str(REJECTED)


async def test_the_newest_of_all_topics_comes_last(paperlane: Paperlane, die: Dying) -> None:
    for _ in range(3):
        await die(CHUNKS_EXTRACTED, part_of(uuid4()))
    second = await die(TASK_EVENTS, record(b"{}", key=None))
    last = await die(DOCUMENTS_COMPLETED, record(b"{}"))
    answer = await paperlane("dlq", "list", "--limit", 2)
    heads = [line for line in answer.out.splitlines() if line[0] != " "]
    assert heads[0].startswith(where(second))
    assert heads[1].startswith(where(last))
    assert heads[2] == "2 dead letters, 2 of them open"


async def test_a_dead_letter_of_a_task_is_open_while_the_task_is_failed(
    paperlane: Paperlane, die: Dying, tasks: Tasks
) -> None:
    by_status = {status: await inserted(tasks, status=status) for status in ("completed", "running", "canceled")}
    found = {status: await die(CHUNKS_EXTRACTED, part_of(task.task_id)) for status, task in by_status.items()}
    found |= {"failed": await die(CHUNKS_EXTRACTED, part_of((await failed(tasks)).task_id))}
    found |= {"deleted": await die(CHUNKS_EXTRACTED, part_of(uuid4()))}
    answer = await paperlane("dlq", "list", "chunks.extracted.dlq", "--limit", 5)
    assert answer.out.splitlines()[-1] == "5 dead letters, 1 of them open"
    for status, position in found.items():
        assert told_of(position, answer)[0].endswith(f"  task {status}")


async def test_without_the_service_the_list_says_what_it_cannot_know(paperlane: Paperlane, die: Dying) -> None:
    position = await die(CHUNKS_EXTRACTED, part_of(uuid4()))
    answer = await paperlane("dlq", "list", "--url", "http://127.0.0.1:9")
    assert told_of(position, answer)[0].endswith("  task unknown")
    assert answer.status == 0
    assert answer.err.startswith("paperlane: the status of tasks is unknown: no answer from http://127.0.0.1:9")


async def test_nothing_in_a_dead_letter_reaches_the_terminal_unescaped(
    paperlane: Paperlane, die: Dying, lab: KafkaLab
) -> None:
    headers = [
        (HOSTILE.decode(errors="replace"), HOSTILE),
        ("error-code", HOSTILE),
        ("nothing", None),
        ("nothing", b""),
    ]
    position = await die(CHUNKS_EXTRACTED, record(HOSTILE, key=HOSTILE, headers=headers))  # type: ignore[arg-type]
    offset = await lab.send(TASK_CONTROL.dead_letters, HOSTILE, key=HOSTILE, headers=headers)  # not written by a stage
    answers = [
        await paperlane("dlq", "list"),
        await paperlane("dlq", "show", *where(position).split()),
        await paperlane("dlq", "show", TASK_CONTROL.dead_letters, 0, offset),
    ]
    for answer in answers:
        assert (answer.status, answer.err) == (0, "")
        assert not [line for line in answer.out.splitlines() if not line.isprintable()]
        assert r"\x1b]0;owned\x07\x1b[2J [red]\xff\x00" in answer.out


async def test_a_dead_letter_is_shown_whole(paperlane: Paperlane, die: Dying) -> None:
    part = extracted(texts=["word " * 400] * 50)
    try:
        raise REJECTED
    except EmbeddingRejectedError as error:
        position = await die(CHUNKS_EXTRACTED, record(part, headers=[("trace", b"\xfe")]), error)
    answer = await paperlane("dlq", "show", *where(position).split())
    assert answer.status == 0
    for line in ("  trace: \\xfe", "  error-code: embedding_rejected", "  consumer-group: embedder"):
        assert line in answer.out.splitlines()
    assert "test_a_dead_letter_is_shown_whole" in answer.out  # of the stack
    assert f'"task_id": "{part.task_id}"' in answer.out
    assert "… 47 more" in answer.out
    assert f"value, {len(part.model_dump_json()):,} bytes" in answer.out


async def test_a_dead_letter_that_is_not_there_is_said_to_be_so(paperlane: Paperlane) -> None:
    for position in (("task.events.dlq", 0, 10**12), ("task.events.dlq", 99, 0)):
        answer = await paperlane("dlq", "show", *position)
        assert (answer.status, answer.out) == (1, "")
        assert answer.err.startswith(f"paperlane: there is no dead letter {' '.join(map(str, position))};")
    answer = await paperlane("dlq", "show", "task.events", 0, 0)
    assert answer.status == 2
    assert "chunks.extracted.dlq" in answer.err


async def test_a_task_is_replayed_for_its_dead_letter(paperlane: Paperlane, die: Dying, tasks: Tasks) -> None:
    task = await failed(tasks)
    position = await die(CHUNKS_EXTRACTED, part_of(task.task_id), REJECTED)
    answer = await paperlane("dlq", "replay", *where(position).split())
    assert (answer.status, answer.out) == (0, f"{task.task_id}: replayed\n1 of 1 tasks replayed\n")
    row = await tasks.get(task.owner, task.task_id)
    assert row
    assert (row.status, row.replays) == ("running", 1)


async def test_each_task_is_replayed_once_and_one_that_cannot_be_stops_nothing(
    paperlane: Paperlane, die: Dying, tasks: Tasks
) -> None:
    over, task, gone = await inserted(tasks, status="completed"), await failed(tasks), uuid4()
    for task_id in (gone, over.task_id, task.task_id, task.task_id):
        await die(CHUNKS_EXTRACTED, part_of(task_id), REJECTED)
    answer = await paperlane("dlq", "replay")
    assert (answer.status, answer.err) == (0, "")
    told = answer.out.splitlines()
    assert [line for line in told if line.startswith(str(task.task_id))] == [f"{task.task_id}: replayed"]
    [conflict] = [line for line in told if line.startswith(str(over.task_id))]
    assert conflict.endswith("the task is completed; only a failed one can be replayed (task_conflict)")
    [missing] = [line for line in told if line.startswith(str(gone))]
    assert missing.endswith("(task_not_found)")


async def test_a_record_of_no_task_is_published_again_as_it_was(
    paperlane: Paperlane, die: Dying, lab: KafkaLab
) -> None:
    headers = [("trace", b"\xff"), ("trace", None), ("attempt", b"4"), ("run", b"2")]
    position = await die(DOCUMENTS_COMPLETED, record(HOSTILE, key=HOSTILE, headers=headers))  # type: ignore[arg-type]
    before = await lab.ends(DOCUMENTS_COMPLETED.name)
    answer = await paperlane("dlq", "replay", *where(position).split())
    assert answer.out.splitlines()[0] == f"{where(position)}: published again to documents.completed"
    [again] = await lab.read(DOCUMENTS_COMPLETED.name, 1, since=before)
    assert (again.key, again.value) == (HOSTILE, HOSTILE)
    assert list(again.headers) == [("trace", b"\xff"), ("trace", None), ("run", b"3")]


async def test_what_was_replayed_is_not_open_any_more_and_not_replayed_again(
    paperlane: Paperlane, die: Dying, lab: KafkaLab
) -> None:
    await paperlane("dlq", "replay", "--topic", "documents.completed.dlq")  # what others have left there
    positions = [await die(DOCUMENTS_COMPLETED, record(b"%d" % n, key=key)) for n, key in enumerate([b"a", None])]
    before = await lab.ends(DOCUMENTS_COMPLETED.name)
    assert (await paperlane("dlq", "replay", "--topic", "documents.completed.dlq")).status == 0
    assert (await paperlane("dlq", "replay", "--topic", "documents.completed.dlq")).status == 0
    again = await lab.read(DOCUMENTS_COMPLETED.name, 2, since=before)
    assert sorted((r.value, r.key) for r in again) == [(b"0", b"a"), (b"1", None)]
    answer = await paperlane("dlq", "list", "documents.completed.dlq", "--limit", 2)
    assert answer.out.splitlines()[-1] == "2 dead letters, 0 of them open"
    for position in positions:
        assert told_of(position, answer)[0].endswith("  replayed")
    assert (await paperlane("dlq", "replay", *where(positions[0]).split())).status == 0  # but by name
    assert len(await lab.read(DOCUMENTS_COMPLETED.name, 3, since=before)) == 3


async def test_nobody_else_can_note_that_something_was_replayed(
    paperlane: Paperlane, die: Dying, lab: KafkaLab
) -> None:
    position = await die(DOCUMENTS_COMPLETED, record(b"{}"))
    note = [("replayed", b"%d:%d" % (position.partition, position.offset))]
    await die(DOCUMENTS_COMPLETED, record(None, headers=note))
    answer = await paperlane("dlq", "list", "documents.completed.dlq", "--limit", 2)
    assert told_of(position, answer)[0].endswith("  open")


async def test_a_reader_that_reads_nothing_closes_without_a_trace(settings: KafkaSettings) -> None:
    async with DeadLetters(settings):
        pass
    async with DeadLetters(settings) as letters:
        assert await letters.read(DeadLetter(topic="of.somebody.else", partition=0, offset=0)) is None


async def test_the_broker_of_paperlane_up_is_found_by_its_data_folder(
    paperlane: Paperlane, stack_thread: StackThread, tmp_path: Path
) -> None:
    servers = stack_thread.stack.environment["KAFKA_BOOTSTRAP_SERVERS"]
    (tmp_path / "ports.json").write_text(json.dumps({"kafka": int(servers.split(":")[1])}))
    elsewhere = paperlane.but(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert (await elsewhere("dlq", "list", "--data", tmp_path)).status == 0
    unreached = await elsewhere("dlq", "list")
    assert (unreached.status, unreached.out) == (1, "")
    assert unreached.err == "paperlane: no Kafka broker answers at 127.0.0.1:9: check KAFKA_BOOTSTRAP_SERVERS\n"
    unused = await elsewhere("dlq", "list", "--data", tmp_path / "nothing")
    assert unused.status == 1
    assert "no `paperlane up` has run in" in unused.err


async def test_tasks_are_canceled_and_replayed_by_their_ids(paperlane: Paperlane, tasks: Tasks) -> None:
    running, over, bad = await inserted(tasks, status="running"), await inserted(tasks, status="completed"), uuid4()
    answer = await paperlane("cancel", over.task_id, running.task_id)
    assert answer.status == 1
    assert f"{running.task_id}: canceled" in answer.out.splitlines()
    assert f"{over.task_id}: the task is completed already" in answer.out
    task = await failed(tasks)
    assert await paperlane("replay", task.task_id) == Answer(0, f"{task.task_id}: replayed\n", "")
    assert (await paperlane("replay", bad)).status == 1
    nobody = await paperlane("cancel", "all")
    assert nobody.status == 2
    assert "Invalid value" in nobody.err
    assert {(await tasks.get("local", t.task_id) or t).status for t in (running, task)} == {"canceled", "running"}
