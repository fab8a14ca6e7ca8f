"""What was asked of the service and what it answered: the books against which the oracle holds what it finds."""

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from shared.tasks import TaskStatus
from tests.support.api import Json


class Answer(StrEnum):
    """What the client of an upload knows."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHED = "unreached"
    """Nobody took the connection."""
    UNKNOWN = "unknown"
    """The connection broke off before the answer: there may be a task, or none."""


@dataclass
class Upload:
    """One upload.

    Attributes
    ----------
    name
        Name of the file, of no other upload.
    ends
        How its task may end.
    error
        Code of the error if it fails.
    answer
        None as long as there is none.
    last_seen
        What its event stream said at the end, where it was followed.
    """

    name: str
    kind: str
    ends: frozenset[TaskStatus]
    error: str | None
    answer: Answer | None = None
    task_id: UUID | None = None
    last_seen: Json | None = None


@dataclass
class Ledger:
    """All uploads, and what else went wrong on the client's side.

    Attributes
    ----------
    violations
        Answers that must never be given.
    told
        Violations that a judgement has told of already.
    """

    uploads: list[Upload] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    told: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> dict[UUID, Upload]:
        """The accepted ones, by task."""
        return {upload.task_id: upload for upload in self.uploads if upload.task_id is not None}

    @property
    def doubtful(self) -> dict[str, Upload]:
        """Those that may have a task although it was not told, by name.

        A refusal is among them: of a database that dies while it commits, nobody knows before it is back.
        """
        return {upload.name: upload for upload in self.uploads if upload.answer in {Answer.REFUSED, Answer.UNKNOWN}}
