"""Consumes task events: folds each batch, then tells the watchers and the indexer."""

from collections.abc import Iterator, Sequence

import structlog
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from services.tracker.records import cancellation, retirement, update
from services.tracker.store import Folded, TaskStore
from shared.breaker import DEAD_LETTER_CAP, Breaker
from shared.broker import Record
from shared.clock import Clock, now
from shared.errors import DependencyUnavailableError, UndecodableRecordError
from shared.events import TASK_EVENT, TaskEvent
from shared.kafka import Outgoing, Publisher
from shared.retry import route
from shared.topics import TASK_EVENTS

logger = structlog.stdlib.get_logger()


class EventFolder:
    """Works through batches of `task.events`.

    Other than a stage's records, events are folded together, in one transaction, and are never sent to a retry
    topic: while the database is away the batch simply comes again, for without it no task can move anyway.
    """

    def __init__(
        self, store: TaskStore, publisher: Publisher, dead_letter_cap: float = DEAD_LETTER_CAP, clock: Clock = now
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self.breaker = Breaker(TASK_EVENTS, dead_letter_cap)

    async def __call__(self, records: tuple[Record, ...]) -> None:
        """Fold a batch, and publish what follows before its offsets are committed."""
        dead: list[tuple[Record, Exception]] = []
        events: list[tuple[Record, TaskEvent]] = []
        for record in records:
            try:
                events.append((record, TASK_EVENT.validate_json(record.value or b"")))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                dead.append((record, UndecodableRecordError(f"no task event: {first['msg']}")))
        try:
            await self._fold(events)
        except (DependencyUnavailableError, KafkaError):
            raise
        except Exception as error:  # noqa: BLE001  one event that PostgreSQL refuses must not hold up all tasks
            logger.warning("folding one by one", events=len(events), error=repr(error))
            await self._fold_each(events)
        for record, reason in dead:
            await self._bury(record, reason)

    async def _fold(self, events: Sequence[tuple[Record, TaskEvent]]) -> None:
        folded = await self._store.fold([event for _, event in events])
        await self._publisher.publish(_consequences(folded))
        for _ in events:
            self.breaker.ended()
        for task in folded.ended:
            logger.info("task over", task_id=str(task.task_id), status=task.status, error_code=task.error_code)

    async def _fold_each(self, events: Sequence[tuple[Record, TaskEvent]]) -> None:
        for record, event in events:
            try:
                await self._fold([(record, event)])
            except (DependencyUnavailableError, KafkaError):
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, it lies in this event
                await self._bury(record, error)

    async def _bury(self, record: Record, reason: Exception) -> None:
        logger.warning("event dead-lettered", partition=record.partition, offset=record.offset, error=repr(reason))
        letter = route(record, reason, topic=TASK_EVENTS, now=self._clock(), delays=())
        await self._publisher.publish([letter.record])
        self.breaker.ended(reason)


def _consequences(folded: Folded) -> Iterator[Outgoing]:
    yield from map(update, folded.tasks)
    yield from map(retirement, folded.superseding)
    yield from map(cancellation, folded.canceled)
