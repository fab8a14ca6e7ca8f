"""Where a record goes whose processing failed: to a retry topic, or to the dead letters.

Pure decisions; publishing is the stage runner's. The key and the original bytes are always kept, so that a replay
is the same record again.
"""

import random
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from shared.broker import Record
from shared.errors import PermanentError, TransientError, error_code, error_message
from shared.kafka import LARGEST_RECORD, Outgoing
from shared.settings import RETRY_DELAYS
from shared.topics import Topic

MAX_STACK_CHARACTERS = 8_000
"""Enough of a traceback to find the line; headers count towards the broker's record limit."""

LONGEST_WAIT = timedelta(days=1)
"""The most that a provider's wish to be asked later counts; stays below `WORK_RETENTION`, which deletes records."""

HEADROOM = 64 * 1024
"""Bytes for the headers that say why a record failed: four for each character of stack and message, and some more."""

_ATTEMPT = re.compile(rb"[1-9][0-9]{0,3}")
_RUN = re.compile(rb"[0-9]{1,9}")

_OURS = frozenset(
    {"attempt", "origin-topic", "origin-partition", "origin-offset", "due-at", "waits-since", "error-type"}
    | {"error-code", "error-message", "error-stack", "failed-at", "consumer-group"}
)


@dataclass(frozen=True)
class Route:
    """What happens to a failed record.

    Attributes
    ----------
    record
        What to publish.
    due_at
        When it will be tried again; None for a dead letter.
    attempt
        The attempt that failed, counted from 1.
    """

    record: Outgoing
    due_at: datetime | None
    attempt: int


def attempt_of(record: Record) -> int:
    """Return which attempt this record is, counted from 1; a header that makes no sense counts as the first."""
    text = dict(record.headers).get("attempt") or b""  # Kafka has headers without a value, too
    return int(text) if _ATTEMPT.fullmatch(text) else 1


def run_of(record: Record) -> int:
    """Return how often a record's unit has been replayed; a header that makes no sense counts as never."""
    text = dict(record.headers).get("run") or b""
    return int(text) if _RUN.fullmatch(text) else 0


def of_run(run: int, outputs: Sequence[Outgoing]) -> Sequence[Outgoing]:
    """Return outputs as those of a run: what comes of a replayed record belongs to the same run."""
    header = ("run", str(run).encode())
    return [replace(output, headers=[*output.headers, header]) for output in outputs] if run else outputs


def route(
    record: Record,
    error: BaseException,
    *,
    topic: Topic,
    now: datetime,
    delays: Sequence[timedelta] = RETRY_DELAYS,
    jitter: float = 0.0,
) -> Route:
    """Decide where a failed record goes.

    A transient error, or one that nobody foresaw, goes to the next delay's topic while there is one; a provider's
    own wish to be asked later is honoured. Everything else becomes a dead letter, and so does at once a record that is
    too large to be sent on: a dead letter then tells where it lies, and holds nothing of it.

    Parameters
    ----------
    jitter
        The share, 0 to 1, by which a delay may be longer, at random: what failed together then comes back apart.
    """
    attempt = attempt_of(record)
    headers = _failure_headers(record, error, attempt=attempt, group=topic.group or "", now=now)
    if too_large := _size(record) > LARGEST_RECORD - HEADROOM:
        record = replace(record, key=None, value=None, headers=())
    if isinstance(error, PermanentError) or attempt > len(delays) or too_large:
        headers["error-stack"] = "".join(traceback.format_exception(error))[-MAX_STACK_CHARACTERS:]
        return Route(_copy(record, topic.dead_letters, headers), None, attempt)
    delay = delays[attempt - 1]
    wish = error.retry_after if isinstance(error, TransientError) else None
    wait = max(delay, min(wish or delay, LONGEST_WAIT))
    due_at = now + wait + delay * (jitter * random.random())  # noqa: S311  no secret
    headers["due-at"] = due_at.isoformat()
    return Route(_copy(record, topic.retry(delay), headers), due_at, attempt)


def _failure_headers(
    record: Record, error: BaseException, *, attempt: int, group: str, now: datetime
) -> dict[str, str]:
    return {
        "attempt": str(attempt),
        "origin-topic": record.topic,
        "origin-partition": str(record.partition),
        "origin-offset": str(record.offset),
        "error-type": type(error).__name__,
        "error-code": error_code(error),
        "error-message": error_message(error),
        "failed-at": now.isoformat(),
        "consumer-group": group,
    }


def without_failure(headers: Sequence[tuple[str, bytes]], *names: str) -> list[tuple[str, bytes]]:
    """Return headers without those that say how a record failed, and without others by name."""
    return [(name, value) for name, value in headers if name not in _OURS and name not in names]


def _copy(record: Record, topic: str, headers: dict[str, str]) -> Outgoing:
    """Copy a record to another topic, foreign headers first and ours renewed."""
    foreign = without_failure(record.headers)
    ours = [(name, text.encode(errors="replace")) for name, text in headers.items()]
    return Outgoing(topic, record.key, record.value, [*foreign, *ours])


def _size(record: Record) -> int:
    parts = (record.key, record.value, *(value for _, value in record.headers))
    return sum(len(part or b"") for part in parts) + sum(len(name.encode()) for name, _ in record.headers)
