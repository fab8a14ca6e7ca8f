"""Records that nobody should have written: each ends where people find it as it was, and nothing waits behind it."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from deploy.local import Component, StackOptions, State
from shared.breaker import MIN_RECORDS
from shared.broker import Record
from shared.embedding import embedding_dimension, model_name
from shared.retry import without_failure
from shared.settings import EmbeddingSettings, KafkaSettings
from shared.topics import CHUNKS_EMBEDDED, CHUNKS_EXTRACTED, TASK_UPDATES, TOPICS, Topic
from tests.faults.documents import good, scan
from tests.faults.ledger import Ledger
from tests.faults.trial import LONG, Trial
from tests.support.builders import embedded, extracted
from tests.support.eventually import eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.kafka_log import read_topics
from tests.support.stack_thread import StackThread

DELAY = timedelta(seconds=1)

ENVIRONMENT = {
    "RETRY_DELAYS": f"{DELAY.seconds}",
    "TOPIC_PARTITIONS": "1",  # so that all is in line behind the poison
    "GRACE_PERIOD": "3",
    "SSE_HEARTBEAT": "1",
}

CONSUMED = tuple(topic for topic in TOPICS if topic.group)

UNKNOWN_VERSION = extracted(task_id=uuid4()).model_dump_json().replace('"schema_version":1', '"schema_version":99')

HEADERS: list[tuple[str, bytes | None]] = [
    ("trace", b"\xff\xfe"),
    ("nothing", None),
    ("twice", b"1"),
    ("twice", b"2"),
    ("", b"without a name"),
    ("run", b"\xff"),
    ("attempt", None),
    ("due-at", b"?"),
]
"""Of others, and those of ours with values that make no sense."""

FIRST = ((b"\xff\xfe\x00", b"\xff:0"), (b"[" * 100_000, None), (None, None), (None, str(uuid4()).encode()))
LAST = ((b"", b""), (b"\xff" * 1_000_000, f"{uuid4()}:0:0".encode()), (UNKNOWN_VERSION.encode(), b"key"))
"""Values and keys."""

GOOD = 12
"""Sound documents beside them, so that the bad ones are what they are meant to be: few among many."""

FLOOD = 44
"""Undecodable records at once: after two batches of 16 the verdict is clear, and what is left is too little for one."""

TOO_LARGE_FOR_WORK = bytes(1_500_000)
"""What a retry topic takes, and a work topic does not."""

LARGE = 3_000_000
"""Bytes of a record that no topic takes, unless its settings are changed."""


@dataclass(frozen=True)
class Sent:
    """What was written, and where."""

    topic: Topic
    offset: int
    key: bytes | None
    value: bytes | None


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackThread]:
    """A stack whose topics hold nothing yet."""
    with StackThread(StackOptions(data=tmp_path_factory.mktemp("stack"), port=0, env=ENVIRONMENT)) as running:
        yield running


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def lab(trial: Trial) -> AsyncIterator[KafkaLab]:
    settings = KafkaSettings(kafka_bootstrap_servers=trial.where.kafka, retry_delays=(DELAY,))
    async with KafkaLab(settings) as lab:
        yield lab


async def poison(lab: KafkaLab, records: Sequence[tuple[bytes | None, bytes | None]]) -> list[Sent]:
    """Write records to every topic that somebody works through."""
    sent = []
    for topic in CONSUMED:
        for value, key in records:
            offset = await lab.send(topic.name, value, key=key, headers=HEADERS)
            sent.append(Sent(topic, offset, key, value))
    return sent


async def good_ones_with_foreign_headers(trial: Trial, lab: KafkaLab) -> int:
    """Write the last good record of every topic once more, with headers that nobody knows; return how many."""
    log = await read_topics(trial.where.kafka, [topic.name for topic in CONSUMED])
    last = [
        [r for r in records if (r.value or b"").startswith(b'{"schema_version":1,')][-1] for records in log.values()
    ]
    for record in last:
        await lab.send(record.topic, record.value, key=record.key, headers=HEADERS)
    return len(last)


async def buried(trial: Trial, topic: Topic) -> dict[tuple[str, str], Record]:
    """Return the dead letters of a topic, by topic and offset of their origin."""
    [letters] = (await read_topics(trial.where.kafka, [topic.dead_letters])).values()
    by_origin = {}
    for letter in letters:
        headers = dict(letter.headers)
        by_origin[headers["origin-topic"].decode(), headers["origin-offset"].decode()] = letter
    assert len(by_origin) == len(letters)
    return by_origin


def all_well(trial: Trial) -> None:
    """Nothing has died, and nothing is unready."""
    for part in trial.stack.components:
        assert (part.state, part.restarts) == (State.READY, 0), (part.name, part.detail)


async def assert_buried_whole(trial: Trial, sent: Sequence[Sent]) -> None:
    for topic in CONSUMED:
        letters, ours = await buried(trial, topic), [each for each in sent if each.topic is topic]
        assert len(letters) == len(ours)
        for each in ours:
            letter = letters[topic.name, str(each.offset)]
            nothing = each.key is None and each.value is None
            assert (letter.key, letter.value) == (each.key, b"" if nothing else each.value)
            assert without_failure(letter.headers) == [
                header for header in HEADERS if header[0] not in {"attempt", "due-at"}
            ]
            assert dict(letter.headers)["error-code"] == b"record_undecodable"
            assert dict(letter.headers)["consumer-group"] == (topic.group or "").encode()


async def test_poison_first_and_last_in_every_partition_stops_nothing(trial: Trial, lab: KafkaLab) -> None:
    sent = await poison(lab, FIRST)
    for value, key in (*FIRST, *LAST):
        await lab.send(TASK_UPDATES.name, value, key=key, headers=HEADERS)
    twice = good(1)
    unwanted, *_ = await trial.load.upload([good(200), twice, scan(), *(good(3, copy) for copy in range(GOOD))])
    await trial.load.cancel(unwanted)
    await trial.verdict("undecodable records before the first good ones", faults=len(sent))
    whole, _ = await trial.load.upload([twice, good(70)])
    await trial.verdict("good records between undecodable ones", faults=0)
    foreign = await good_ones_with_foreign_headers(trial, lab)
    sent += await poison(lab, [*LAST, (b"what it was", f"{whole.task_id}:0:0".encode())])
    await trial.verdict("good records with foreign headers, and undecodable ones behind them", faults=foreign)
    await assert_buried_whole(trial, sent)
    all_well(trial)


async def test_poison_in_the_retry_topics_comes_back_and_is_buried(trial: Trial, lab: KafkaLab) -> None:
    topics = [topic for topic in CONSUMED if topic.retried]
    for topic in topics:
        await lab.send(topic.retry(DELAY), b"\xff", key=b"\x00", headers=HEADERS)
        await lab.send(topic.retry(DELAY), None, key=None, headers=HEADERS)
        await lab.send_large(topic.retry(DELAY), TOO_LARGE_FOR_WORK, key=b"\x00", headers=HEADERS)
    await trial.load.upload([good(1, 102)])
    await trial.verdict("undecodable records in the retry topics", faults=3 * len(topics))
    for topic in topics:
        letters = list((await buried(trial, topic)).values())[-3:]
        assert {letter.value for letter in letters} == {b"\xff", b"", TOO_LARGE_FOR_WORK}
    all_well(trial)


async def test_an_event_that_makes_no_sense_is_tried_again_and_buried(trial: Trial, lab: KafkaLab) -> None:
    task = uuid4()
    settings = EmbeddingSettings()
    right = {"model": model_name(settings), "dimension": embedding_dimension(settings)}
    event = embedded(task_id=task).model_copy(update=right | {"vectors": "no base64"})
    value = event.model_dump_json().encode()
    await lab.send(CHUNKS_EMBEDDED.name, value, key=f"{task}:2:3".encode())
    await trial.load.upload([good(1, 103)])
    await trial.verdict("an event whose vectors cannot be read", faults=1)
    letter = list((await buried(trial, CHUNKS_EMBEDDED)).values())[-1]
    headers = dict(letter.headers)
    assert (letter.value, headers["error-code"], headers["attempt"]) == (value, b"internal_error", b"2")
    all_well(trial)


async def test_a_record_of_3_mb_is_refused_by_the_broker(lab: KafkaLab) -> None:
    for topic in TOPICS:
        with pytest.raises(MessageSizeTooLargeError):
            await lab.send_large(topic.name, bytes(LARGE), key=b"large")


async def test_a_record_of_3_mb_stops_nothing_where_the_broker_takes_it(trial: Trial, lab: KafkaLab) -> None:
    offset = await lab.send_beyond_limit(CHUNKS_EXTRACTED.name, bytes(LARGE), key=b"large")
    await trial.load.upload([good(1, 104)])
    await trial.verdict("a record of 3 MB", faults=1)
    letter = (await buried(trial, CHUNKS_EXTRACTED))[CHUNKS_EXTRACTED.name, str(offset)]
    assert (letter.key, letter.value) == (None, b"")  # it holds nothing of what no topic of ours would take
    assert dict(letter.headers)["error-code"] == b"record_undecodable"
    all_well(trial)


async def test_a_flood_of_dead_letters_pauses_its_stage_alone(trial: Trial) -> None:
    [embedder] = trial.stack.services["embedder"]
    await trial.restart(embedder)  # what has ended in the minute before does not count any more
    before = len(await buried(trial, CHUNKS_EXTRACTED))
    await flood(trial, CHUNKS_EXTRACTED.name)
    await trial.load.upload([good(1, 105)])
    verdict = f"{CHUNKS_EXTRACTED.name}: paused: "
    await eventually(lambda: says(embedder, verdict), trial.scale.patience)
    died = len(await buried(trial, CHUNKS_EXTRACTED)) - before
    assert MIN_RECORDS <= died < FLOOD
    for part in set(trial.stack.components) - {embedder}:
        assert part.state is State.READY, (part.name, part.detail)
    if trial.scale is not LONG:
        await trial.restart(embedder)  # as after a release that is better; else it tries again by itself
    await trial.verdict("a flood of undecodable records", faults=FLOOD)
    assert len(await buried(trial, CHUNKS_EXTRACTED)) - before == FLOOD
    await eventually(lambda: says(embedder, "ready"), trial.scale.patience)


async def flood(trial: Trial, topic: str) -> None:
    """Write undecodable records at once, so that the consumer comes upon all of them together."""
    async with AIOKafkaProducer(bootstrap_servers=trial.where.kafka) as producer:
        batch = producer.create_batch()
        for number in range(FLOOD):
            batch.append(value=b"%d" % number, key=None, timestamp=None)
        await (await producer.send_batch(batch, topic, partition=0))


async def says(service: Component, words: str) -> None:
    """Assert that a probe of a service is answered so."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{service.url}/readyz")
    assert answer.text.startswith(words), answer.text
