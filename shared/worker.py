"""The frame of the four workers: one ASGI app that consumes from Kafka and answers probes on its own port."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

from faststream.asgi import AsgiFastStream, AsgiResponse, get
from prometheus_client import make_asgi_app
from pydantic import Field, model_validator

from shared.breaker import DEAD_LETTER_CAP
from shared.broker import GRACE_PERIOD, Broker
from shared.cancellations import Cancellations
from shared.deadline import UNIT_TIMEOUT
from shared.kafka import Publisher
from shared.liveness import STALL_LIMIT, Liveness, end_process
from shared.logs import configure_logging
from shared.relay import Relay
from shared.settings import KafkaSettings, LogSettings, Seconds
from shared.stage import Runtime
from shared.subscription import Subscription
from shared.topics import Topic


class WorkerSettings(KafkaSettings, LogSettings):
    """What every worker needs to know."""

    unit_timeout: Seconds = Field(
        UNIT_TIMEOUT,
        title="Unit timeout",
        gt=timedelta(0),
        le=timedelta(hours=1),
        description="Longest time for one unit of work, in seconds, before it is stopped, to be tried again later.",
    )
    stall_limit: Seconds = Field(
        STALL_LIMIT,
        title="Stall limit",
        gt=timedelta(0),
        description="Longest time, in seconds, that work may wait while none ends; then the process is unready, and "
        "after twice that it ends itself to be started anew.",
    )
    grace_period: Seconds = Field(
        GRACE_PERIOD,
        title="Grace period",
        gt=timedelta(0),
        description="Seconds that a stopping process lets work in hand finish, fewer than its supervisor gives it; "
        "another one does what is left.",
    )
    dead_letter_cap: float = Field(
        DEAD_LETTER_CAP,
        title="Dead-letter cap",
        gt=0,
        le=1,
        description="Share of a minute's records that may become dead letters for no fault of their document's before "
        "the stage pauses; 1 never pauses it.",
    )

    @model_validator(mode="after")
    def _stall_limit_above_any_unit(self) -> "WorkerSettings":
        limit, unit = self.stall_limit.total_seconds(), self.unit_timeout.total_seconds()
        if limit <= unit:
            raise ValueError(f"STALL_LIMIT={limit:g} must be longer than UNIT_TIMEOUT={unit:g}, the time of one unit")
        return self


C = TypeVar("C")


def create_worker(
    name: str,
    settings: WorkerSettings,
    topics: Sequence[Topic],
    open_context: Callable[[Runtime], AbstractAsyncContextManager[C]],
    register: Callable[[Broker, C], Sequence[Subscription]],
) -> AsgiFastStream:
    """Build a worker.

    Parameters
    ----------
    name
        The service's name, in logs.
    topics
        What the worker consumes; their retry topics are relayed.
    open_context
        Opens what the worker needs, once Kafka answers; closed after the last record is finished.
    register
        Subscribes the worker's handlers before the first record is consumed.
    """
    configure_logging(settings, name)
    broker, publisher = Broker(settings, grace_period=settings.grace_period), Publisher(settings)
    liveness = Liveness(settings, settings.stall_limit)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            await publisher.start()
            async with (
                _runtime(settings, topics, publisher) as runtime,
                open_context(runtime) as context,
                Relay(topics, settings, publisher).running(),
                liveness.watching(),
            ):
                liveness.subscriptions = register(broker, context)
                with _no_half_life():
                    yield
        finally:
            await publisher.aclose()

    @get
    async def livez(_: object) -> AsgiResponse:
        reason = liveness.beyond_help()
        return AsgiResponse((reason or "alive").encode(), 503 if reason else 200)

    @get
    async def readyz(_: object) -> AsgiResponse:
        reason = liveness.problem() or (None if await publisher.ping() else "no broker")
        return AsgiResponse((reason or "ready").encode(), 503 if reason else 200)

    return AsgiFastStream(
        broker,
        lifespan=lifespan,
        asgi_routes=[("/livez", livez), ("/readyz", readyz), ("/metrics", make_asgi_app())],
        logger=None,
    )


@asynccontextmanager
async def _runtime(settings: WorkerSettings, topics: Sequence[Topic], publisher: Publisher) -> AsyncIterator[Runtime]:
    units = any(topic.step for topic in topics)
    async with Cancellations.open(settings) if units else nullcontext(Cancellations()) as cancellations:
        yield Runtime(
            publisher,
            cancellations,
            delays=settings.retry_delays,
            unit_timeout=settings.unit_timeout,
            jitter=settings.retry_jitter,
            dead_letter_cap=settings.dead_letter_cap,
        )


@contextmanager
def _no_half_life() -> Iterator[None]:
    """End the process when its consumers cannot be started, as while the broker is away.

    FastStream starts them after the app has started. When that fails it gives up the app, and uvicorn goes on without.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever it is, nothing consumes any more
        end_process(f"nothing consumes any more: {error!r}")
