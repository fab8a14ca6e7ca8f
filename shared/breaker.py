"""Pauses a stage whose records die: a bad deploy must not drain its topic into the dead letters.

A document that is at fault itself says nothing about the stage, so only other dead letters count.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import structlog

from shared import metrics
from shared.errors import DocumentError, PaperlaneError
from shared.topics import Topic

WINDOW = timedelta(minutes=1)
"""How far back records count: long enough to see a few batches of a slow stage, short enough to act on a deploy."""

PAUSE = timedelta(minutes=1)
"""Until the next batch is tried: time for a rollback, at the price of one batch of dead letters for each pause."""

MIN_RECORDS = 20
"""Fewer are no verdict: two odd records of three, in a quiet hour, are no reason to stop."""

DEAD_LETTER_CAP = 0.5
"""Well above what odd single records ever make up, and below what a stage does that cannot work at all."""

MonotonicClock = Callable[[], float]

logger = structlog.stdlib.get_logger()


class StagePausedError(PaperlaneError):
    """The stage takes no batch for now; it comes again."""

    code = "stage_paused"


class Breaker:
    """Watches how the records of one topic end in this process, and stops its batches where too many die.

    After a pause one batch is tried. If too many of its records die too, the next pause begins; else all is well.

    Parameters
    ----------
    cap
        The share of dead letters, 0 to 1, above which the stage pauses; 1 never pauses it.
    clock
        Seconds that only ever grow.

    Attributes
    ----------
    ended_at
        When a record ended last, by `clock`; minus infinity before the first one.
    """

    def __init__(self, topic: Topic, cap: float = DEAD_LETTER_CAP, clock: MonotonicClock = time.monotonic) -> None:
        self.ended_at = float("-inf")
        self._topic = topic
        self._cap = cap
        self._clock = clock
        self._ended: deque[tuple[float, bool]] = deque()
        self._paused_until: float | None = None
        self._verdict = ""
        metrics.STAGE_PAUSED.labels(topic.stage, topic.name).set_function(lambda: self.problem() is not None)

    def ended(self, dead: BaseException | None = None) -> None:
        """Note that a record has ended.

        Parameters
        ----------
        dead
            Why it became a dead letter; None where it did not.
        """
        self.ended_at = self._clock()
        self._ended.append((self.ended_at, dead is not None and not isinstance(dead, DocumentError)))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Watch a batch.

        Raises
        ------
        StagePausedError
            On entry: the stage is paused, and no record of the batch may be touched.
        """
        if (reason := self.problem()) and self._seconds_left() > 0:
            raise StagePausedError(reason)
        trial = self._paused_until is not None
        if trial:
            self._ended.clear()
        try:
            yield
        finally:
            self._judge(1 if trial else MIN_RECORDS)

    def problem(self) -> str | None:
        """Say why the stage is paused; None where it is not, or where no batch has come for a pause since it might."""
        if self._paused_until is None or self._seconds_left() < -PAUSE.total_seconds():
            return None
        return f"paused: {self._verdict}; the next batch is tried in {max(0.0, self._seconds_left()):.0f} s"

    def _seconds_left(self) -> float:
        return (self._paused_until or 0) - self._clock()

    def _judge(self, enough: int) -> None:
        now = self._clock()
        while self._ended and self._ended[0][0] < now - WINDOW.total_seconds():
            self._ended.popleft()
        count, dead = len(self._ended), sum(died for _, died in self._ended)
        if count < enough:
            return
        if dead > self._cap * count:
            self._verdict = f"{dead} of {count} records became dead letters"
            self._paused_until = now + PAUSE.total_seconds()
            logger.error("stage paused", topic=self._topic.name, dead=dead, records=count, seconds=PAUSE.seconds)
        elif self._paused_until is not None:
            self._paused_until = None
            logger.info("stage goes on", topic=self._topic.name, records=count)
