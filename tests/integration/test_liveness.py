"""Consumers that stand still, on a real broker: found out, told from those that only wait, and started anew."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from aiokafka import TopicPartition

from deploy.local import LocalStack, StackOptions
from shared import liveness as liveness_module
from shared import subscription as subscription_module
from shared.breaker import Breaker
from shared.broker import Broker, Consume, Record, subscribe
from shared.liveness import Liveness
from shared.offsets import Offsets
from shared.subscription import Subscription
from shared.topics import Topic
from tests.integration.conftest import StackSettings
from tests.support.builders import extracted
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab, consumer_of
from tests.support.odd_worker import odd_command, odd_environment
from tests.support.stack_thread import StackThread

LIMIT = timedelta(seconds=1)

STALLED = "stands still: work waits, and no record has ended for"


class Looks:
    """Counts the looks at the broker, with what was wrong at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, problem: Callable[[], str | None]) -> None:
        self.problems: list[str | None] = []
        self._problem = problem
        self._looked = asyncio.Event()
        look = Offsets.waiting

        async def look_and_count(offsets: Offsets, group: str, partitions: Collection[TopicPartition]) -> int:
            self.problems.append(self._problem())
            self._looked.set()
            return await look(offsets, group, partitions)

        monkeypatch.setattr(Offsets, "waiting", look_and_count)

    async def more(self, count: int) -> None:
        until = len(self.problems) + count
        while len(self.problems) < until:
            self._looked.clear()
            await before_long(self._looked.wait())


class Watched:
    """One subscription with its watch; where that would end the process it only says so."""

    def __init__(self, subscription: Subscription, liveness: Liveness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.subscription = subscription
        self.liveness = liveness
        self.looks = Looks(monkeypatch, liveness.problem)
        self.ended = asyncio.Event()
        self.reasons: list[str] = []
        monkeypatch.setattr(liveness_module, "end_process", self.end)

    def end(self, reason: str) -> None:
        self.reasons.append(reason)
        self.ended.set()

    async def is_well(self) -> None:
        assert self.liveness.problem() is None

    async def stands_still(self) -> None:
        assert STALLED in str(self.liveness.problem())


@asynccontextmanager
async def watching(
    lab: KafkaLab,
    topic: Topic,
    consume: Consume,
    monkeypatch: pytest.MonkeyPatch,
    *,
    limit: timedelta = LIMIT,
    breaker: Breaker | None = None,
) -> AsyncIterator[Watched]:
    broker = Broker(lab.settings, grace_period=timedelta(milliseconds=100))
    subscription = subscribe(broker, topic, consume, max_records=10, breaker=breaker)
    liveness = Liveness(lab.settings, limit)
    liveness.subscriptions = [subscription]
    watched = Watched(subscription, liveness, monkeypatch)
    async with watched.liveness.watching():
        await broker.start()
        try:
            await eventually(watched.is_well)
            yield watched
        finally:
            await broker.stop()


class Deaf:
    """A handler that hangs, and ignores its cancellation, until the test is over."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.released = asyncio.Event()

    async def __call__(self, _: Sequence[Record]) -> None:
        self.entered.set()
        canceled = False
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                canceled = True
        if canceled:
            raise asyncio.CancelledError


@pytest.fixture
async def deaf() -> AsyncIterator[Deaf]:
    handler = Deaf()
    yield handler
    handler.released.set()


async def nothing(_: Sequence[Record]) -> None:
    """Have no trouble with anything."""


async def test_a_consumer_whose_handler_hangs_is_unready_and_then_ends_its_process(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch, deaf: Deaf
) -> None:
    topic = await lab.topic()
    async with watching(lab, topic, deaf, monkeypatch) as watched:
        await lab.send(topic.name, b"work")
        await before_long(deaf.entered.wait())
        await watched.is_well()
        await eventually(watched.stands_still)
        assert watched.liveness.beyond_help() is None
        await before_long(watched.ended.wait())
        assert str(watched.liveness.beyond_help()).startswith(f"{topic.name}: {STALLED}")
    assert watched.reasons[0].startswith(f"{topic.name}: {STALLED}")
    assert await lab.committed(topic) == {}


async def test_a_consumer_without_work_is_well_however_long_it_waits(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await lab.topic()
    async with watching(lab, topic, nothing, monkeypatch) as watched:
        await watched.looks.more(3 * liveness_module.LOOKS)
        await watched.is_well()
        await lab.send(topic.name, b"at last")
        await watched.looks.more(liveness_module.LOOKS)
        assert set(watched.looks.problems) <= {None, f"{topic.name}: not a member of its consumer group yet"}
    assert watched.reasons == []


async def test_a_batch_that_takes_long_is_fine_while_its_records_end(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, done = await lab.topic(), asyncio.Event()
    breaker = Breaker(topic)
    for n in range(8):
        await lab.send(topic.name, b"%d" % n)

    async def slowly(records: Sequence[Record]) -> None:
        for _ in records:
            await asyncio.sleep(LIMIT.total_seconds() / 2)  # the work itself
            breaker.ended()
        done.set()

    async with watching(lab, topic, slowly, monkeypatch, breaker=breaker) as watched:
        await before_long(done.wait())
        await watched.is_well()
    assert not [problem for problem in watched.looks.problems if STALLED in str(problem)]
    assert watched.reasons == []


async def test_a_batch_that_fails_loudly_and_comes_again_is_no_stall(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await lab.topic()

    async def refuse(_: Sequence[Record]) -> None:
        raise OSError("the database is away")

    async with watching(lab, topic, refuse, monkeypatch, limit=2 * LIMIT) as watched:
        await lab.send(topic.name, b"work")
        await watched.looks.more(3 * liveness_module.LOOKS)
        await watched.is_well()
    assert watched.reasons == []


async def test_a_broker_that_does_not_answer_is_nobodys_fault(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch, deaf: Deaf, stack_thread: StackThread
) -> None:
    topic = await lab.topic()
    async with watching(lab, topic, deaf, monkeypatch) as watched:
        await lab.send(topic.name, b"work")
        await before_long(deaf.entered.wait())
        with stack_thread.frozen("kafka"):
            await watched.looks.more(5)  # each waits for an answer for as long as the limit is
            assert watched.reasons == []
        await before_long(watched.ended.wait())


async def test_a_broker_that_dies_is_nobodys_fault_and_its_successor_is_asked(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch, deaf: Deaf, stack_thread: StackThread
) -> None:
    topic, kafka = await lab.topic(), stack_thread.stack.servers["kafka"]
    async with watching(lab, topic, deaf, monkeypatch) as watched:
        await lab.send(topic.name, b"work")
        await before_long(deaf.entered.wait())
        await stack_thread.do(kafka.kill())
        assert watched.reasons == []
        await stack_thread.do(kafka.ready())
        await before_long(watched.ended.wait())


async def test_a_rebalance_storm_is_no_stall(lab: KafkaLab, monkeypatch: pytest.MonkeyPatch, deaf: Deaf) -> None:
    monkeypatch.setattr(subscription_module, "HANDOVER_PATIENCE", timedelta(milliseconds=1))
    topic, limit = await lab.topic(partitions=2), timedelta(seconds=5)  # a rebalance takes a heartbeat of up to 3 s
    for partition in range(2):
        await lab.send(topic.name, b"work", partition=partition)
    async with watching(lab, topic, deaf, monkeypatch, limit=limit) as watched:
        start = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < start + 3 * limit.total_seconds():
            async with lab.consuming(topic, deaf, grace_period=timedelta(milliseconds=1)) as other:
                assert consumer_of(other).assignment()
        assert not [problem for problem in watched.looks.problems if STALLED in str(problem)]
        assert watched.reasons == []


async def test_a_consume_loop_that_has_died_without_a_word_ends_its_process(
    lab: KafkaLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = await lab.topic()
    async with watching(lab, topic, nothing, monkeypatch) as watched:
        assert watched.subscription.subscriber
        for loop in watched.subscription.subscriber.tasks:
            loop.cancel()
        await before_long(watched.ended.wait())
        assert watched.liveness.problem() == f"{topic.name}: its consume loop has ended"
    assert watched.reasons[0] == f"{topic.name}: its consume loop has ended"


@pytest.mark.parametrize(
    ("text", "last_words"),
    [
        ("hang", STALLED),
        ("cancel", "its consume loop has ended"),
        ("block", "_block"),  # in the traceback
    ],
)
async def test_a_worker_that_stands_still_ends_itself_and_its_supervisor_starts_it_anew(
    lab: KafkaLab, settings: StackSettings, tmp_path: Path, text: str, last_words: str
) -> None:
    topic, output = await lab.topic(), await lab.topic()
    env = {
        **odd_environment(settings, topic, output, tmp_path),
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "UNIT_TIMEOUT": "3",
        "STALL_LIMIT": "4",
    }
    options = StackOptions(
        data=tmp_path / "stack", port=0, services=("embedder",), env=env, command=odd_command, migrate=()
    )
    async with LocalStack(options) as stack:
        (worker,) = stack.services["embedder"]
        await lab.send(topic.name, extracted([text]).model_dump_json().encode(), key=b"k")

        async def unready() -> None:
            async with httpx.AsyncClient() as client:
                response = await client.get(f"{worker.url}/readyz")
            assert response.status_code == 503
            assert last_words in response.text

        if text == "hang":
            await eventually(unready)

        async def done() -> None:
            assert await lab.committed(topic) == {0: 1}

        await eventually(done, within=timedelta(seconds=60))
        await worker.ready()
        assert worker.restarts == 1
        log = (tmp_path / "stack" / "logs" / "embedder.log").read_text()
    assert last_words in log
    assert [record.value for record in await lab.read(output.name, 1)] == [b"3"]
