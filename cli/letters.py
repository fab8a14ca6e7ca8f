"""How dead letters look on a terminal."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self
from uuid import UUID

from rich.text import Text

from cli.printable import excerpt, printable, readable
from shared.broker import Record
from shared.dead_letters import task_of
from shared.events import DeadLetter
from shared.retry import attempt_of

MAX_CODE = 60
"""Characters of an error code; ours are shorter, but a header may hold anything."""

MAX_LINE = 300
"""Characters of a key or a message: `show` has them whole, and a list must stay in memory."""

STACK = "error-stack"


@dataclass(frozen=True)
class Letter:
    """A dead letter in a list.

    Attributes
    ----------
    task
        The task to replay for it, if there is one.
    """

    position: DeadLetter
    written: datetime
    task: UUID | None
    key: str
    attempt: int
    code: str
    message: str

    @classmethod
    def of(cls, record: Record) -> Self:
        """Keep of a record what a list shows."""
        headers = dict(record.headers)
        return cls(
            position=DeadLetter(topic=record.topic, partition=record.partition, offset=record.offset),
            written=_written(record),
            task=task_of(record),
            key=readable((record.key or b"")[:MAX_LINE]),
            attempt=attempt_of(record),
            code=readable(headers.get("error-code"))[:MAX_CODE],
            message=readable(headers.get("error-message"))[:MAX_LINE],
        )

    def lines(self, state: str, colour: str) -> Iterator[Text]:
        """Show it; the first line begins with the position as `show` and `replay` take it."""
        at = self.written.isoformat(sep=" ", timespec="seconds")
        facts = f"  {at}  attempt {self.attempt}  {self.code}  "
        yield Text.assemble((where(self.position), "bold"), facts, (state, colour))
        yield Text(f"      task {self.task or 'unknown'}, key {self.key}", "dim")
        yield Text(f"      {self.message}", "dim")


def where(position: DeadLetter) -> str:
    """Return a position as the commands take it."""
    return f"{position.topic} {position.partition} {position.offset}"


def whole(record: Record) -> Iterator[Text]:
    """Show a dead letter: key, headers, the error with its stack, and the value."""
    yield Text(f"written  {_written(record).isoformat(sep=' ', timespec='milliseconds')}")
    yield Text(f"key      {readable(record.key)}")
    yield Text("headers", "bold")
    for name, value in record.headers:
        if name != STACK:
            yield Text(f"  {printable(name)}: {readable(value)}")
    yield Text("stack", "bold")
    stack = dict(record.headers).get(STACK) or b""
    for line in stack.decode(errors="backslashreplace").splitlines():
        yield Text(f"  {printable(line)}")
    yield Text(f"value, {len(record.value or b''):,} bytes", "bold")
    for line in excerpt(record.value or b""):
        yield Text(f"  {line}")


def _written(record: Record) -> datetime:
    return datetime.fromtimestamp(record.timestamp / 1000, UTC)
