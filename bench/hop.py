"""One hop through Kafka, from the send to the handler, on idle subscribers: FastStream's own and ours.

`python -m bench.hop` prints the table of docs/decisions/0001-waiting-consumer.md.
"""

import asyncio
import logging
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median, quantiles
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

from deploy.local import LocalStack, StackOptions
from shared.broker import Broker, subscribe
from shared.kafka import Outgoing, Publisher, client_options
from shared.settings import KafkaSettings
from shared.topics import Topic

HOPS = 100
GAPS = (0.02, 0.3)
"""Shortest and longest pause between two records in seconds: random, so that no rhythm of polling helps."""

TIMEOUTS_MS = (5, 50, 200)


class Hops:
    """Sends records one after another and notes how long each takes to its handler."""

    def __init__(self, settings: KafkaSettings, publisher: Publisher) -> None:
        self._settings = settings
        self._publisher = publisher
        self._arrived = asyncio.Event()
        self._at = 0.0

    def take(self) -> None:
        """Note that a record has arrived."""
        self._at = time.perf_counter()
        self._arrived.set()

    async def measure(self, name: str, subscribed: Callable[[Topic], Awaitable[KafkaBroker]]) -> None:
        """Print the hops through one kind of subscriber."""
        topic = Topic(f"hop-{uuid4()}", "bench", f"hop-{uuid4()}", retried=False)
        await self._create(topic)
        broker = await subscribed(topic)
        await broker.start()
        try:
            await self._hop(topic)  # the first one waits for the group to form
            chance = random.Random(0)
            times = []
            for _ in range(HOPS):
                await asyncio.sleep(chance.uniform(*GAPS))
                times.append(await self._hop(topic))
        finally:
            await broker.stop()
        print(f"| {name} | {median(times) * 1000:.1f} | {quantiles(times, n=20)[-1] * 1000:.1f} |")

    async def _hop(self, topic: Topic) -> float:
        self._arrived.clear()
        sent = time.perf_counter()
        await self._publisher.publish([Outgoing(topic.name, b"key", b"{}")])
        await self._arrived.wait()
        return self._at - sent

    async def _create(self, topic: Topic) -> None:
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic.name, 1, 1)])
        finally:
            await admin.close()


async def main() -> None:
    """Measure FastStream's batch subscriber with several poll timeouts, then ours, on one broker."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        async with LocalStack(StackOptions(data=Path(folder), port=0, services=())) as stack:
            settings = KafkaSettings(kafka_bootstrap_servers=stack.environment["KAFKA_BOOTSTRAP_SERVERS"])
            publisher = Publisher(settings)
            await publisher.start()
            try:
                await _compare(Hops(settings, publisher), settings)
            finally:
                await publisher.aclose()


async def _compare(hops: Hops, settings: KafkaSettings) -> None:
    async def consume(_: object) -> None:
        hops.take()

    print("| subscriber | p50 ms | p95 ms |\n|---|---|---|")
    for timeout in TIMEOUTS_MS:

        async def plain(topic: Topic, pause: int = timeout) -> KafkaBroker:
            broker = KafkaBroker(**client_options(settings), logger=None, apply_types=False)
            subscriber = broker.subscriber(
                topic.name,
                batch=True,
                group_id=topic.group,
                auto_offset_reset="earliest",
                ack_policy=AckPolicy.NACK_ON_ERROR,
                batch_timeout_ms=pause,
            )
            subscriber(consume)
            return broker

        await hops.measure(f"FastStream, batch_timeout_ms={timeout}", plain)

    async def waiting(topic: Topic) -> KafkaBroker:
        broker = Broker(settings)
        subscribe(broker, topic, consume, max_records=100)
        return broker

    await hops.measure("`shared/broker.py`", waiting)


if __name__ == "__main__":
    asyncio.run(main())
