"""The one way in which every consumer works through its records.

Records of a batch run concurrently, each decoded on its own and each failure routed on its own. The outputs of a
record are published and acknowledged before the batch's offsets are committed, so nothing is lost; a crash in
between repeats records, so everything downstream is idempotent. Only a failure to publish escapes: then the batch
is not committed and comes again.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar

import structlog
from pydantic import ValidationError

from shared import metrics
from shared.breaker import DEAD_LETTER_CAP, Breaker
from shared.broker import Record
from shared.cancellations import Cancellations
from shared.clock import Clock, now
from shared.deadline import UNIT_TIMEOUT, supervise
from shared.errors import RecordTooLargeError, UndecodableRecordError, error_code
from shared.events import Event
from shared.kafka import Outgoing, Publisher
from shared.reports import FailureReport, Unit
from shared.retry import Route, of_run, route, run_of
from shared.settings import RETRY_DELAYS
from shared.topics import Topic

E = TypeVar("E", bound=Event)
Handle = Callable[[E], Coroutine[Any, Any, Sequence[Outgoing]]]
Outcome = Literal["done", "canceled", "retried", "dead"]

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True)
class Runtime:
    """What all runners of a process share.

    Attributes
    ----------
    delays
        How long a failed record waits before the second, third, … attempt; after the last it is a dead letter.
    unit_timeout
        How long the work on one record may take before it is stopped, to be tried again like any that failed.
    jitter
        The share, 0 to 1, by which a wait may be longer than its delay.
    dead_letter_cap
        The share of dead letters, 0 to 1, above which a runner pauses.
    """

    publisher: Publisher
    cancellations: Cancellations = field(default_factory=Cancellations)
    delays: Sequence[timedelta] = RETRY_DELAYS
    unit_timeout: timedelta = UNIT_TIMEOUT
    jitter: float = 0.0
    dead_letter_cap: float = DEAD_LETTER_CAP
    clock: Clock = now


class StageRunner(Generic[E]):
    """Consumes the records of one topic.

    Where they ask for units of work, the records of canceled tasks are dropped, and those at work are stopped.

    Parameters
    ----------
    event
        What the records hold.
    handle
        Does the work of one event and returns what to publish. It raises one of `shared.errors`; anything else
        counts as transient.
    undo
        Removes what an earlier owner of a dropped record may have left behind. With it, work under way is not stopped:
        what it does must be over when it is removed, so it ends, and reports.
    """

    def __init__(
        self, topic: Topic, event: type[E], handle: Handle[E], runtime: Runtime, *, undo: Handle[E] | None = None
    ) -> None:
        self.topic = topic
        self.breaker = Breaker(topic, runtime.dead_letter_cap)
        self._event = event
        self._handle = handle
        self._runtime = runtime
        self._undo = undo
        self._canceled = runtime.cancellations if topic.step else Cancellations()
        self._stopping = Cancellations() if undo else self._canceled

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
            outcome = await self._settle(record)
            if outcome != "dead":
                self.breaker.ended()
            metrics.RECORDS.labels(self.topic.stage, self.topic.name, outcome).inc()
            seconds = time.perf_counter() - started
            metrics.RECORD_SECONDS.labels(self.topic.stage, self.topic.name).observe(seconds)
            logger.debug("record processed", outcome=outcome, seconds=round(seconds, 4))

    async def _settle(self, record: Record) -> Outcome:
        """Do what a record asks for, publish what follows, and return how it went."""
        event: E | None = None
        try:
            event = self._decode(record)
            with structlog.contextvars.bound_contextvars(task_id=str(event.task_id)):
                outputs, outcome = await self._outputs(event)
        except Exception as error:  # noqa: BLE001  every failure of a record is routed, none stops the partition
            return await self._fail(record, event, error)
        try:
            await self._runtime.publisher.publish(of_run(run_of(record), outputs))
        except RecordTooLargeError as error:
            return await self._fail(record, event, error)
        return outcome

    def _decode(self, record: Record) -> E:
        try:
            return self._event.model_validate_json(record.value or b"")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the record"
            raise UndecodableRecordError(f"no {self._event.__name__}: {where}: {first['msg']}") from error

    async def _outputs(self, event: E) -> tuple[Sequence[Outgoing], Outcome]:
        canceled = event.task_id in self._canceled
        work = self._undo if canceled else self._handle
        if work is None:
            return (), "canceled"
        with self._stopping.watch(event.task_id) as unwanted:
            outputs = await supervise(work(event), self._runtime.unit_timeout, unwanted)
        return outputs or (), "canceled" if canceled or outputs is None else "done"

    async def _fail(self, record: Record, event: E | None, error: Exception) -> Outcome:
        """Send a record to where failed ones go, and tell the tracker once it is there."""
        runtime, publish = self._runtime, self._runtime.publisher.publish
        decision = route(
            record, error, topic=self.topic, now=runtime.clock(), delays=runtime.delays, jitter=runtime.jitter
        )
        self._log(decision, error)
        report = self._report(record, event, error)
        if decision.due_at is not None:
            attempts = len(runtime.delays) + 1
            told = [report.retried(decision.attempt, attempts, decision.due_at)] if report else []
            await publish([decision.record, *told])
            return "retried"
        [position] = await publish([decision.record])
        if report:
            await publish([report.final(position)])
        self.breaker.ended(error)
        return "dead"

    def _report(self, record: Record, event: E | None, error: Exception) -> FailureReport | None:
        """Return the report of a failure; None where nobody waits for the unit, or none is known."""
        unit = Unit.of(event) if event else Unit.named_by(record.key)
        if self.topic.step is None or unit is None or unit.task_id in self._canceled:
            return None
        return FailureReport(unit, self.topic.step, run_of(record), error, self._runtime.clock())

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
