"""What a saboteur is told: where, when and how to strike. One file an order, in a folder for each service."""

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from uuid import uuid4

FOLDER = "SABOTAGE"
"""The environment variable that names the folder of all orders."""


class Point(StrEnum):
    """Where a process can be struck, and by what names a hit is known."""

    WORK = "work"
    """A record is worked on: the name of its document's file."""
    PUBLISH = "publish"
    """Records are published together: their topics."""
    DATABASE_COMMIT = "database commit"
    """Statements become durable: their SQL."""
    OFFSET_COMMIT = "offset commit"
    """A consumer's offsets are committed: the topics it has subscribed."""


class Moment(StrEnum):
    """Before or after what happens at a point; after is when it has succeeded."""

    BEFORE = "before"
    AFTER = "after"


class Action(StrEnum):
    """How to strike."""

    KILL = "kill"
    """As kill -9 does."""
    FAIL = "fail"
    """With an error that passes."""
    REFUSE = "refuse"
    """With an error that does not."""
    LINGER = "linger"
    """By taking longer, while the event loop goes on."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """One strike.

    Attributes
    ----------
    target
        Pattern (`*`, `?`) of one of the names at the point.
    nth
        Which of the hits in one process is meant.
    seconds
        How long to linger.
    again
        Whether to strike at every further hit, too.
    """

    point: Point
    moment: Moment
    target: str
    action: Action = Action.KILL
    nth: int = 1
    seconds: float = 0
    again: bool = False

    def meets(self, point: Point, moment: Moment, names: list[str]) -> bool:
        """Tell whether this is the place."""
        return (point, moment) == (self.point, self.moment) and any(fnmatchcase(name, self.target) for name in names)


def give(folder: Path, service: str, order: Order) -> Path:
    """Give an order to all replicas of a service, and return its file."""
    orders = folder / service
    orders.mkdir(parents=True, exist_ok=True)
    path = orders / f"{uuid4()}.json"
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(order)))
    return draft.rename(path)


def read(path: Path) -> Order | None:
    """Read an order; None where another replica has taken it meanwhile."""
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    named = {"point": Point(fields["point"]), "moment": Moment(fields["moment"]), "action": Action(fields["action"])}
    return Order(**fields | named)


def take(path: Path) -> bool:
    """Take an order, which of all processes one alone can do, and leave word of who it was."""
    try:
        path.rename(path.with_suffix(".taken"))
    except FileNotFoundError:
        return False
    draft = path.with_suffix(".draft")
    draft.write_text(str(os.getpid()))
    draft.rename(path.with_suffix(".done"))
    return True


def done_by(path: Path) -> int | None:
    """Return the process that has carried out an order; None as long as none has."""
    try:
        return int(path.with_suffix(".done").read_text())
    except FileNotFoundError:
        return None
