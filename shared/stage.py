"""The one way in which every consumer works through its records.

Records of a batch run concurrently, each decoded on its own and each failure routed on its own. The outputs of a
record are published and acknowledged before the batch's offsets are committed, so nothing is lost; a crash in
between repeats records, so everything downstream is idempotent. Only a failure to publish escapes: then the batch
is not committed and comes again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar
from uuid import UUID

import structlog
from pydantic import ValidationError

from shared import metrics
from shared.broker import Record
from shared.clock import Clock, now
from shared.errors import UndecodableRecordError, error_code, error_message
from shared.events import Event, Stage, UnitFailed
from shared.kafka import Outgoing, Publisher
from shared.retry import Route, route
from shared.settings import RETRY_DELAYS
from shared.topics import TASK_EVENTS, Topic

E = TypeVar("E", bound=Event)
Handle = Callable[[E], Awaitable[Sequence[Outgoing]]]

logger = structlog.stdlib.get_logger()


class StageRunner(Generic[E]):
    """Consumes the records of one topic.

    Parameters
    ----------
    event
        What the records hold.
    handle
        Does the work of one event and returns what to publish. It raises one of `shared.errors`; anything else
        counts as transient.
    delays
        How long a failed record waits before the second, third, … attempt; after the last it is a dead letter.
    """

    def __init__(
        self,
        topic: Topic,
        event: type[E],
        handle: Handle[E],
        publisher: Publisher,
        *,
        delays: Sequence[timedelta] = RETRY_DELAYS,
        clock: Clock = now,
    ) -> None:
        self.topic = topic
        self._event = event
        self._handle = handle
        self._publisher = publisher
        self._delays = delays
        self._clock = clock

    async def __call__(self, records: tuple[Record, ...]) -> None:
        """Work through a batch; return when the outputs of all its records are acknowledged.

        All records are awaited even when one cannot be published, so that none still runs when the batch comes
        again.
        """
        outcomes = await asyncio.gather(*map(self._run, records), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _run(self, record: Record) -> None:
        with structlog.contextvars.bound_contextvars(
            topic=record.topic, partition=record.partition, offset=record.offset
        ):
            started = time.perf_counter()
            outputs, outcome = await self._outputs(record)
            await self._publisher.publish(outputs)
            metrics.RECORDS.labels(self.topic.stage, self.topic.name, outcome).inc()
            seconds = time.perf_counter() - started
            metrics.RECORD_SECONDS.labels(self.topic.stage, self.topic.name).observe(seconds)
            logger.debug("record processed", outcome=outcome, seconds=round(seconds, 4))

    async def _outputs(self, record: Record) -> tuple[Sequence[Outgoing], str]:
        """Return what to publish for a record, and how it went: done, retried or dead."""
        event: E | None = None
        try:
            event = self._decode(record)
            with structlog.contextvars.bound_contextvars(task_id=str(event.task_id)):
                return await self._handle(event), "done"
        except Exception as error:  # noqa: BLE001  every failure of a record is routed, none stops the partition
            return self._failure(record, event, error)

    def _decode(self, record: Record) -> E:
        try:
            return self._event.model_validate_json(record.value or b"")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the record"
            raise UndecodableRecordError(f"no {self._event.__name__}: {where}: {first['msg']}") from error

    def _failure(self, record: Record, event: E | None, error: Exception) -> tuple[Sequence[Outgoing], str]:
        decision = route(record, error, topic=self.topic, now=self._clock(), delays=self._delays)
        self._log(decision, error)
        if decision.due_at is not None:
            return [decision.record], "retried"
        task_id = event.task_id if event else _task_of(record)
        if task_id is None or not self.topic.unit:
            return [decision.record], "dead"
        failed = UnitFailed(
            task_id=task_id,
            stage=Stage(self.topic.stage),
            shard=getattr(event, "shard", 0),
            part=getattr(event, "part", 0),
            code=error_code(error),
            message=error_message(error),
            failed_at=self._clock(),
        )
        return [decision.record, Outgoing.of(TASK_EVENTS.name, str(task_id), failed)], "dead"

    def _log(self, decision: Route, error: Exception) -> None:
        unforeseen = error_code(error) == "internal_error"
        logger.warning(
            "record failed",
            error_code=error_code(error),
            error=str(error),
            attempt=decision.attempt,
            next_attempt_at=decision.due_at and decision.due_at.isoformat(),
            exc_info=error if unforeseen else None,
        )


def _task_of(record: Record) -> UUID | None:
    """Return the task of an undecodable record where its key still names it."""
    try:
        return UUID((record.key or b"").split(b":")[0].decode())
    except ValueError:
        return None
