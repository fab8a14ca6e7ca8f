"""How every process reaches Kafka: client options, and the publisher."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata
from pydantic import BaseModel

from shared.errors import DependencyUnavailableError, RecordTooLargeError
from shared.settings import KafkaSettings

CONNECT_PATIENCE = timedelta(seconds=60)
"""How long a starting service waits for Kafka before it gives up and lets its supervisor start it anew."""

CONNECT_PAUSE = timedelta(seconds=0.5)
"""Between two attempts to connect: short, because starting everything at once is the usual case."""

PING_TIMEOUT = timedelta(seconds=2)
"""A broker that does not answer within it counts as away; stays below the timeout of a readiness probe."""


LARGEST_RECORD = 2 * 1024 * 1024
"""Bytes of a record that a publisher may send: a copy of any record that a work topic takes (1 MiB, Kafka's own
limit), with the headers that say why it failed. Retry and dead-letter topics take as much."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options that all Kafka clients share."""
    return {"bootstrap_servers": settings.kafka_bootstrap_servers}


@dataclass(frozen=True)
class Outgoing:
    """A record to publish: bytes as they go onto the wire."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()

    @classmethod
    def of(cls, topic: str, key: str, event: BaseModel) -> Self:
        """Encode an event as JSON."""
        return cls(topic, key.encode(), event.model_dump_json().encode())


class Publisher:
    """Publishes records and waits until every in-sync replica has them.

    The producer is idempotent: through a broker's absence it neither loses, doubles nor reorders records, and it
    waits without end, so that whoever must answer sooner sets a deadline of their own.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()
        self._calls: Counter[AIOKafkaProducer] = Counter()

    async def start(self, patience: timedelta = CONNECT_PATIENCE) -> None:
        """Connect, trying again for as long as `patience` lasts.

        Raises
        ------
        DependencyUnavailableError
            No broker answered in that time.
        """
        if self._producer is None:
            self._producer = await self._connected(patience)

    async def publish(self, records: Iterable[Outgoing]) -> list[RecordMetadata]:
        """Publish records, and return where each of them lies once all are acknowledged.

        Raises
        ------
        DependencyUnavailableError
            Not connected yet.
        RecordTooLargeError
            A record is larger than its topic takes; whether others of this call were written is unknown.
        KafkaError
            A record was refused for another reason; of the others the same holds.
        """
        if (producer := self._producer) is None:
            raise DependencyUnavailableError("not connected to Kafka yet")
        self._calls[producer] += 1
        try:
            acks = [await self._send(producer, record) for record in records]
            positions: list[RecordMetadata] = await asyncio.gather(*acks)
        except KafkaError as error:
            await self._renew(producer)
            if isinstance(error, MessageSizeTooLargeError):
                raise RecordTooLargeError(f"a record is larger than its topic takes: {error}") from error
            raise
        finally:
            await self._leave(producer)
        return positions

    async def _send(self, producer: AIOKafkaProducer, record: Outgoing) -> asyncio.Future[RecordMetadata]:
        nothing = record.key is None and record.value is None  # which Kafka has, but no aiokafka producer sends
        ack: asyncio.Future[RecordMetadata] = await producer.send(
            record.topic, b"" if nothing else record.value, key=record.key, headers=list(record.headers)
        )
        return ack

    async def _renew(self, refused: AIOKafkaProducer) -> None:
        """Replace a producer of which the broker refused a record.

        It has counted that record as sent, so that from then on the broker would find its sequence out of order.
        """
        async with self._renewing:
            if self._producer is refused:
                self._producer = await self._connected(CONNECT_PATIENCE)

    async def _leave(self, producer: AIOKafkaProducer) -> None:
        """End a call, and with the last one a producer that was replaced; stopped any sooner, it would hang others."""
        self._calls[producer] -= 1
        if not self._calls[producer]:
            del self._calls[producer]
            if producer is not self._producer:
                await producer.stop()

    async def _connected(self, patience: timedelta) -> AIOKafkaProducer:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience.total_seconds()
        while True:
            producer = AIOKafkaProducer(
                **client_options(self._settings), acks="all", enable_idempotence=True, max_request_size=LARGEST_RECORD
            )
            try:
                await producer.start()
            except KafkaConnectionError as error:
                await producer.stop()
                if loop.time() >= deadline:
                    servers = self._settings.kafka_bootstrap_servers
                    raise DependencyUnavailableError(
                        f"no Kafka broker answers at {servers}: check KAFKA_BOOTSTRAP_SERVERS"
                    ) from error
                await asyncio.sleep(CONNECT_PAUSE.total_seconds())
            else:
                return producer

    async def ping(self) -> bool:
        """Tell whether a broker answers now."""
        if self._producer is None:
            return False
        try:
            await asyncio.wait_for(self._producer.client.fetch_all_metadata(), PING_TIMEOUT.total_seconds())
        except (KafkaError, TimeoutError):
            return False
        return True

    async def aclose(self) -> None:
        """Flush what is on its way and disconnect."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()
