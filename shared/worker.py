"""The frame of the four workers: one ASGI app that consumes from Kafka and answers probes on its own port."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from faststream.asgi import AsgiFastStream, AsgiResponse, get
from prometheus_client import make_asgi_app

from shared.broker import Broker, Membership
from shared.kafka import Publisher
from shared.logs import configure_logging
from shared.relay import Relay
from shared.settings import KafkaSettings, LogSettings
from shared.topics import Topic


class WorkerSettings(KafkaSettings, LogSettings):
    """What every worker needs to know."""


C = TypeVar("C")


def create_worker(
    name: str,
    settings: WorkerSettings,
    topics: Sequence[Topic],
    open_context: Callable[[Publisher], AbstractAsyncContextManager[C]],
    register: Callable[[Broker, C], Sequence[Membership]],
) -> AsgiFastStream:
    """Build a worker.

    Parameters
    ----------
    name
        The service's name, in logs and in the group of its relay.
    topics
        What the worker consumes; their retry topics are relayed.
    open_context
        Opens what the worker needs, once Kafka answers; closed after the last record is finished.
    register
        Subscribes the worker's handlers before the first record is consumed.
    """
    configure_logging(settings, name)
    broker, publisher = Broker(settings), Publisher(settings)
    memberships: list[Membership] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            await publisher.start()
            async with open_context(publisher) as context, Relay(topics, name, settings, publisher).running():
                memberships.extend(register(broker, context))
                yield
        finally:
            await publisher.aclose()

    @get
    async def livez(_: object) -> AsgiResponse:
        return AsgiResponse(b"alive", status_code=200)

    @get
    async def readyz(_: object) -> AsgiResponse:
        settled = bool(memberships) and all(membership.settled for membership in memberships)
        if settled and await publisher.ping():
            return AsgiResponse(b"ready", status_code=200)
        return AsgiResponse(b"not a member of its consumer groups yet" if not settled else b"no broker", 503)

    return AsgiFastStream(
        broker,
        lifespan=lifespan,
        asgi_routes=[("/livez", livez), ("/readyz", readyz), ("/metrics", make_asgi_app())],
        logger=None,
    )
