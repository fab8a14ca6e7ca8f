"""A stage whose records die, on a real broker."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial

import pytest

from shared import breaker as breaker_module
from shared import broker as broker_module
from shared.breaker import MIN_RECORDS
from shared.broker import Broker, subscribe
from shared.errors import EmbeddingRejectedError
from shared.events import ChunksExtracted
from shared.kafka import Outgoing, Publisher
from shared.stage import Runtime, StageRunner
from tests.support.builders import extracted
from tests.support.eventually import eventually
from tests.support.kafka_lab import KafkaLab, consumer_of

BATCH = 10


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PAUSE", timedelta(seconds=2))
    monkeypatch.setattr(broker_module, "AGAIN_PAUSE", timedelta(milliseconds=10))


class Deployment:
    """A stage of which every record dies until it is repaired."""

    def __init__(self) -> None:
        self.good = False
        self.asked = 0

    async def embed(self, _: ChunksExtracted) -> Sequence[Outgoing]:
        self.asked += 1
        if not self.good:
            raise EmbeddingRejectedError("no such model")
        return []


async def test_a_bad_deploy_pauses_its_stage_and_after_the_repair_all_that_is_left_is_done(
    lab: KafkaLab, publisher: Publisher
) -> None:
    topic, deployment = await lab.topic(), Deployment()
    left = 2 * BATCH
    for part in range(MIN_RECORDS + left):
        await lab.send(topic.name, extracted(part=part).model_dump_json().encode(), key=b"k")
    runner = StageRunner(topic, ChunksExtracted, deployment.embed, Runtime(publisher))
    broker = Broker(lab.settings)
    subscription = subscribe(broker, topic, runner, max_records=BATCH, breaker=runner.breaker)

    async def paused() -> None:
        assert "paused: 20 of 20 records became dead letters" in str(subscription.problem())

    async def all_done() -> None:
        assert await lab.committed(topic) == {0: MIN_RECORDS + left}

    await broker.start()
    try:
        await eventually(paused)
        deployment.good = True
        assert deployment.asked == MIN_RECORDS
        assert await lab.committed(topic) == {0: MIN_RECORDS}
        assert consumer_of(broker).assignment(), "it stays a member of its group"
        await eventually(all_done)
        assert subscription.problem() is None
    finally:
        await broker.stop()
    assert deployment.asked == MIN_RECORDS + left
    assert len(await lab.read(topic.dead_letters, MIN_RECORDS)) == MIN_RECORDS


async def test_a_repair_that_fails_costs_one_batch_for_each_pause(lab: KafkaLab, publisher: Publisher) -> None:
    topic, deployment = await lab.topic(), Deployment()
    for part in range(MIN_RECORDS + 3 * BATCH):
        await lab.send(topic.name, extracted(part=part).model_dump_json().encode(), key=b"k")
    runner = StageRunner(topic, ChunksExtracted, deployment.embed, Runtime(publisher))
    asked_at_each_pause = []

    async def paused(for_the: int) -> None:
        assert deployment.asked >= MIN_RECORDS + for_the * BATCH
        assert runner.breaker.problem()

    async with lab.consuming(topic, runner, max_records=BATCH, breaker=runner.breaker):
        for time in range(3):
            await eventually(partial(paused, time))
            asked_at_each_pause.append(deployment.asked)
    assert asked_at_each_pause == [MIN_RECORDS, MIN_RECORDS + BATCH, MIN_RECORDS + 2 * BATCH]
