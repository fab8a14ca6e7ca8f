import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from aiokafka.errors import KafkaError

from shared import kafka
from shared.errors import DependencyUnavailableError, RecordTooLargeError
from shared.events import DocumentCompleted
from shared.kafka import Outgoing, Publisher
from shared.settings import KafkaSettings
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.stack_thread import StackThread
from tests.support.task_events import START, new_task

SHORT = timedelta(milliseconds=100)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def forwarding(port: int, address: str) -> AsyncIterator[None]:
    """Listen on a port for as long as the context is open, and pass everything on to an address."""
    host, _, target = address.partition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(target))
        await asyncio.gather(pump(reader, back), pump(there, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


async def test_without_a_broker_a_start_gives_up_and_names_the_address(
    free_port: int, nothing_left_running: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "CONNECT_PAUSE", timedelta(milliseconds=10))
    address = f"127.0.0.1:{free_port}"
    publisher = Publisher(KafkaSettings(kafka_bootstrap_servers=address))
    with pytest.raises(DependencyUnavailableError, match=rf"{address}: check KAFKA_BOOTSTRAP_SERVERS"):
        await before_long(publisher.start(patience=SHORT))
    with pytest.raises(DependencyUnavailableError, match="not connected"):
        await publisher.publish([Outgoing("any", b"k", b"v")])
    assert not await publisher.ping()
    await publisher.aclose()


async def test_a_start_waits_for_a_broker_that_comes_later(
    lab: KafkaLab, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "CONNECT_PAUSE", timedelta(milliseconds=10))
    refused = asyncio.Event()
    sleep = asyncio.sleep

    async def noticed(seconds: float) -> None:
        refused.set()
        await sleep(seconds)

    topic, publisher = await lab.topic(), Publisher(KafkaSettings(kafka_bootstrap_servers=f"127.0.0.1:{free_port}"))
    starting = asyncio.create_task(publisher.start())
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", noticed)
        await before_long(refused.wait())
    async with forwarding(free_port, lab.settings.kafka_bootstrap_servers):
        await before_long(starting)
        await publisher.publish([Outgoing(topic.name, b"k", b"v")])
        await publisher.aclose()
    assert [record.value for record in await lab.read(topic.name, 1)] == [b"v"]


async def test_records_arrive_as_they_are_and_in_order(lab: KafkaLab, publisher: Publisher) -> None:
    topic = await lab.topic()
    headers = [("attempt", b"1"), ("bytes", b"\xff\x00"), ("attempt", b"2")]
    numbered = [Outgoing(topic.name, b"k", b"%d" % n) for n in range(50)]
    await publisher.publish([*numbered, Outgoing(topic.name, None, b"\xfe", headers), Outgoing(topic.name, b"x", None)])
    *first, keyless, empty = await lab.read(topic.name, 52)
    assert [record.value for record in first] == [b"%d" % n for n in range(50)]
    assert (keyless.key, keyless.value, list(keyless.headers)) == (None, b"\xfe", headers)
    assert (empty.key, empty.value) == (b"x", None)


async def test_an_event_is_published_as_json_that_reads_back_the_same(lab: KafkaLab, publisher: Publisher) -> None:
    topic, task = await lab.topic(), new_task("søren")
    event = DocumentCompleted(task_id=task.task_id, document_id=task.document_id, owner=task.owner, submitted_at=START)
    await publisher.publish([Outgoing.of(topic.name, "clé", event)])
    (record,) = await lab.read(topic.name, 1)
    assert record.key == "clé".encode()
    assert DocumentCompleted.model_validate_json(record.value or b"") == event


@pytest.mark.parametrize("size", [3 << 19, 8 << 20], ids=["for the topic", "for the publisher"])
async def test_a_record_that_is_too_large_is_refused(lab: KafkaLab, publisher: Publisher, size: int) -> None:
    topic = await lab.topic()
    await publisher.publish([Outgoing(topic.name, b"k", b"before")])
    for _ in range(2):
        with pytest.raises(RecordTooLargeError):
            await publisher.publish([Outgoing(topic.name, b"k", bytes(size))])
        await publisher.publish([Outgoing(topic.name, b"k", b"fits")])
    assert [record.value for record in await lab.read(topic.name, 3)] == [b"before", b"fits", b"fits"]


async def test_a_refusal_hurts_nobody_who_publishes_at_the_same_time(lab: KafkaLab, publisher: Publisher) -> None:
    topics, choice = [(await lab.topic(partitions=4)).name for _ in range(3)], random.Random(1)
    fine = [[Outgoing(choice.choice(topics), b"%d" % n, bytes(20_000)) for _ in range(3)] for n in range(150)]
    refused, waiting = [], choice.sample(fine, len(fine))
    for n in range(10):
        too_large = Outgoing(choice.choice(topics), b"too large", bytes(3 << 19))
        waiting.insert(n * 15, [fine[n][0], too_large, *fine[n][1:]])

    async def publish() -> None:
        while waiting:
            records = waiting.pop()
            try:
                await publisher.publish(records)
            except RecordTooLargeError:
                refused.append(records)
            except KafkaError:
                waiting.append(records)  # as a stage does, whose batch comes again

    await before_long(asyncio.gather(*(publish() for _ in range(30))))
    assert len(refused) == 10


async def test_nothing_to_publish_is_fine(publisher: Publisher) -> None:
    await publisher.publish([])


async def test_ping_tells_whether_the_broker_answers_now(
    publisher: Publisher, stack_thread: StackThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await publisher.ping()
    with monkeypatch.context() as patch, stack_thread.frozen("kafka"):
        patch.setattr(kafka, "PING_TIMEOUT", SHORT)
        assert not await publisher.ping()

    async def answers() -> None:
        assert await publisher.ping()

    await eventually(answers)


async def test_what_is_published_while_the_broker_is_frozen_arrives_once_when_it_is_back(
    lab: KafkaLab, publisher: Publisher, stack_thread: StackThread
) -> None:
    topic = await lab.topic()
    await publisher.publish([Outgoing(topic.name, b"k", b"before")])
    with stack_thread.frozen("kafka"):
        publishing = asyncio.create_task(publisher.publish([Outgoing(topic.name, b"k", b"meanwhile")]))
        done, _ = await asyncio.wait({publishing}, timeout=SHORT.total_seconds())
        assert not done
    await before_long(publishing)
    assert [record.value for record in await lab.read(topic.name, 2)] == [b"before", b"meanwhile"]


async def test_after_a_close_it_is_not_connected_and_closing_again_is_fine(settings: KafkaSettings) -> None:
    publisher = Publisher(settings)
    await publisher.start()
    await publisher.aclose()
    await publisher.aclose()
    assert not await publisher.ping()
    with pytest.raises(DependencyUnavailableError):
        await publisher.publish([])
