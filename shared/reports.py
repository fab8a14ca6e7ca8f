"""What a stage tells the tracker of a unit of work that failed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from aiokafka.structs import RecordMetadata
from pydantic import BaseModel, ConfigDict, Field

from shared.errors import error_code, error_message
from shared.events import MOST, DeadLetter, Event, PagesRequested, PartEvent, Step, UnitFailed, UnitRetryScheduled
from shared.kafka import Outgoing
from shared.topics import TASK_EVENTS


class Unit(BaseModel):
    """Which piece of a task a record asks for; shard and part are 0 where there is none yet."""

    model_config = ConfigDict(frozen=True)

    task_id: UUID
    shard: int = Field(0, ge=0, le=MOST)
    part: int = Field(0, ge=0, le=MOST)
    parts: int | None = None

    @classmethod
    def of(cls, event: Event) -> Self:
        """Return the unit that an event asks for."""
        match event:
            case PartEvent():
                return cls(task_id=event.task_id, shard=event.shard, part=event.part, parts=event.parts)
            case PagesRequested():
                return cls(task_id=event.task_id, shard=event.shard)
            case _:
                return cls(task_id=event.task_id)

    @classmethod
    def named_by(cls, key: bytes | None) -> Self | None:
        """Return the unit that a key names: `task`, `task:shard` or `task:shard:part`; None where it names none."""
        try:
            names = (key or b"").decode().split(":")
            return cls(**dict(zip(("task_id", "shard", "part"), names, strict=False))) if len(names) <= 3 else None
        except ValueError:  # of which pydantic's is one
            return None


@dataclass(frozen=True)
class FailureReport:
    """One failure of a unit, as the events that tell of it.

    Parameters
    ----------
    run
        How often the unit has been replayed.
    """

    unit: Unit
    step: Step
    run: int
    error: Exception
    at: datetime

    def retried(self, attempt: int, attempts: int, retry_at: datetime) -> Outgoing:
        """Tell that it will be tried again."""
        return self._outgoing(
            UnitRetryScheduled(
                **self._failure(), parts=self.unit.parts, attempt=attempt, attempts=attempts, retry_at=retry_at
            )
        )

    def final(self, position: RecordMetadata) -> Outgoing:
        """Tell that it will not, and where the dead letter lies.

        Its offset is negative, and so unknown, where the broker was sent it again long after it had taken it.
        """
        letter = None
        if position.offset >= 0:
            letter = DeadLetter(topic=position.topic, partition=position.partition, offset=position.offset)
        return self._outgoing(UnitFailed(**self._failure(), dead_letter=letter))

    def _failure(self) -> dict[str, Any]:
        return {
            "task_id": self.unit.task_id,
            "stage": self.step.stage,
            "step": self.step,
            "shard": self.unit.shard,
            "part": self.unit.part,
            "run": self.run,
            "code": error_code(self.error),
            "message": error_message(self.error),
            "failed_at": self.at,
        }

    def _outgoing(self, event: UnitRetryScheduled | UnitFailed) -> Outgoing:
        return Outgoing.of(TASK_EVENTS.name, str(self.unit.task_id), event)
