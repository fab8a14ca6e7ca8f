"""Accounts for every task that was ever accepted: waits until all is quiet, gathers what there is, and judges."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from aiokafka.errors import KafkaError

from services.tracker.sweep import sweep
from shared.blobs import BlobStore
from shared.database.pool import Pool, acquire
from shared.errors import DependencyUnavailableError
from shared.tasks import FINAL, TaskStatus
from tests.faults.evidence import Evidence, Whereabouts, gather
from tests.faults.laws import LAWS, duplicates
from tests.faults.ledger import Answer, Ledger
from tests.support.eventually import eventually
from tests.support.kafka_log import lags

MOST_SHOWN = 30
"""Violations of one judgement that are written out; what is wrong is clear by then."""

UNFINISHED = "SELECT task_id::text, status FROM tasks WHERE NOT status = ANY($1) OR dispatched_at IS NULL"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What became of a scenario's tasks.

    Attributes
    ----------
    lost
        Accepted tasks that are not there, or not over.
    duplicated
        Units that were done more than once, each time beyond the first.
    refused, unreached, unknown
        Uploads that were not known to be accepted, by what the client knew.
    recovery_seconds
        From the end of the fault until all tasks were over.
    """

    accepted: int
    completed: int
    failed: int
    canceled: int
    lost: int
    duplicated: int
    refused: int
    unreached: int
    unknown: int
    recovery_seconds: float


class Oracle:
    """Judges the uploads from now on, and holds all that went before against the same laws once more.

    Parameters
    ----------
    where
        The stack.
    ledger
        All uploads since the stack was made.
    """

    def __init__(self, where: Whereabouts, pool: Pool, blobs: BlobStore, ledger: Ledger) -> None:
        self._where = where
        self._pool = pool
        self._blobs = blobs
        self._ledger = ledger
        self._mark = len(ledger.uploads)

    async def settle(self, patience: timedelta) -> float:
        """Wait until all is quiet, and return the seconds until all tasks were over."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._in_time(self._nothing_unfinished, patience)
        seconds = clock() - began
        await self._in_time(self._nothing_under_way, patience)
        return seconds

    async def judge(self, recovery_seconds: float) -> Figures:
        """Hold everything against the laws.

        Raises
        ------
        AssertionError
            With all that is wrong, but for what an earlier judgement told already.
        """
        await sweep(self._pool, self._blobs, timedelta(0))  # of a gateway that died between a blob and its row
        found = await gather(self._where, self._pool)
        broken = [*self._ledger.violations]
        broken += (f"{law.__name__}: {breach}" for law in LAWS for breach in law(found, self._ledger))
        news = [breach for breach in broken if breach not in self._ledger.told]
        self._ledger.told.update(news)
        assert not news, "\n".join([f"{len(news)} violations", *news[:MOST_SHOWN]])
        return self._figures(found, recovery_seconds)

    async def _in_time(self, check: Callable[[], Awaitable[None]], patience: timedelta) -> None:
        try:
            await eventually(check, patience)
        except AssertionError as error:
            self._ledger.violations.append(str(error))

    async def _nothing_unfinished(self) -> None:
        try:
            async with acquire(self._pool) as connection:
                left = await connection.fetch(UNFINISHED, list(FINAL))
        except DependencyUnavailableError as error:
            raise AssertionError(str(error)) from error
        assert not left, f"not over: {[tuple(task) for task in left]}"

    async def _nothing_under_way(self) -> None:
        try:
            left = await lags(self._where.kafka)
        except KafkaError as error:
            raise AssertionError(f"the broker does not answer: {error!r}") from error
        assert not left, f"not consumed: {dict(left)}"

    def _figures(self, found: Evidence, seconds: float) -> Figures:
        uploads = self._ledger.uploads[self._mark :]
        names = {upload.name for upload in uploads}
        ours = {task_id: task for task_id, task in found.tasks.items() if task.filename in names}
        answers, ends = Counter(upload.answer for upload in uploads), Counter(task.status for task in ours.values())
        return Figures(
            accepted=answers[Answer.ACCEPTED],
            completed=ends[TaskStatus.COMPLETED],
            failed=ends[TaskStatus.FAILED],
            canceled=ends[TaskStatus.CANCELED],
            lost=sum(upload.task_id is not None and upload.task_id not in found.tasks for upload in uploads),
            duplicated=duplicates(found, set(ours)),
            refused=answers[Answer.REFUSED],
            unreached=answers[Answer.UNREACHED],
            unknown=answers[Answer.UNKNOWN],
            recovery_seconds=round(seconds, 1),
        )
