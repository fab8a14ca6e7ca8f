"""Tells people of tasks that failed and of stages that stand still.

One tracker speaks, the one that leads. A failure is told when at least one channel has taken the message; only then its
row is marked, so that what no channel takes is told once one is back, by whichever process leads then. If this one dies
between the two, one message comes twice. What one of several channels missed, and which stages stand still, only the
memory of the leading process knows: after a restart a stage that still stands is told again once it has stood for its
time, and one that has moved meanwhile is not.

No row is locked while a message is on its way, and no task waits for anything here.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import asyncpg
import structlog

from services.tracker.alerts.channels import TELL_WITHIN, Channel
from services.tracker.alerts.leadership import Leadership
from services.tracker.alerts.news import SAMPLES, Failure, News
from services.tracker.alerts.standstill import Standstill
from services.tracker.config import TrackerSettings
from shared.clock import Clock, now
from shared.periodic import periodically
from shared.stages import LOOK_INTERVAL as STAGES_INTERVAL
from shared.stages import StageWatch
from shared.tasks import TaskRow

LOOK_INTERVAL = timedelta(seconds=2)
"""How often untold failures are looked for; a partial index keeps a look cheap."""

GATHER = timedelta(seconds=2)
"""From the first untold failure to the message: what fails for one cause fails together, and is told together."""

BATCH = 1000
"""Rows of one statement that marks: it holds their locks for well under a second."""

MOST = 10_000
"""Failures of one message, so that reading them is nothing to the event loop; the next message has the next ones."""

UNTOLD = """
    SELECT task_id, replays, error_code FROM tasks
    WHERE status = 'failed' AND alerted_at IS NULL AND completed_at >= $1 ORDER BY completed_at, task_id LIMIT $2
"""

SAMPLE = "SELECT * FROM tasks WHERE task_id = ANY($1) AND status = 'failed' ORDER BY completed_at, task_id"

# A task that was replayed meanwhile has another number of replays, and will be told of if it fails again. Both
# statements lock rows in the order in which all others do.
MARK = """
    UPDATE tasks SET alerted_at = $3 WHERE task_id IN (
        SELECT task_id FROM tasks JOIN unnest($1::uuid[], $2::int[]) AS told (task_id, replays) USING (task_id, replays)
        WHERE status = 'failed' ORDER BY task_id FOR UPDATE OF tasks
    )
"""

GIVE_UP = """
    UPDATE tasks SET alerted_at = $2 WHERE task_id IN (
        SELECT task_id FROM tasks WHERE status = 'failed' AND alerted_at IS NULL AND completed_at < $1
        ORDER BY task_id LIMIT $3 FOR UPDATE
    ) RETURNING 1
"""

logger = structlog.stdlib.get_logger()


class Alerts:
    """Watches for what people should know of, and tells the channels of ALERT_URLS."""

    def __init__(self, settings: TrackerSettings, clock: Clock = now) -> None:
        self._channels = [Channel(number, url) for number, url in enumerate(settings.alert_urls, start=1)]
        self._leadership = Leadership(settings)
        self._watch = StageWatch(settings, clock)
        self._standstill = Standstill()
        self._told: list[asyncpg.Record] = []
        self._clock = clock

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Alert in the background while the context is open; without any channel there is nothing to do."""
        if not self._channels:
            yield
            return
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._leadership.aclose)
            stack.push_async_callback(self._watch.aclose)
            await stack.enter_async_context(periodically(LOOK_INTERVAL, self.look))
            await stack.enter_async_context(periodically(STAGES_INTERVAL, self.look_at_stages))
            yield

    async def look_at_stages(self) -> None:
        """Note which stages have come to a standstill, and which have moved on.

        Raises
        ------
        DependencyUnavailableError
            The broker does not answer.
        """
        if self._leadership.held:
            self._standstill.note(await self._watch.observe())

    async def look(self) -> None:
        """Tell what is to be told.

        Raises
        ------
        DependencyUnavailableError
            The database is away.
        """
        async with self._leadership.claim() as connection:
            if connection is not None:
                await self._mark(connection)
                await self._give_up(connection)
                await self._tell(connection)

    async def _give_up(self, connection: asyncpg.Connection) -> None:
        at = self._clock()
        while given_up := len(await connection.fetch(GIVE_UP, at - TELL_WITHIN, at, BATCH)):
            logger.warning("failures too old to be told", tasks=given_up)

    async def _tell(self, connection: asyncpg.Connection) -> None:
        ready = [channel for channel in self._channels if channel.ready]
        if not ready:
            return
        failed = await self._failed(connection)
        news = await self._news(connection, failed)
        taken = await asyncio.gather(*(channel.tell(news) for channel in ready))
        if not any(taken):
            self._standstill.put_back(news.notices)
            return
        told = [channel for channel, has_taken in zip(ready, taken, strict=True) if has_taken]
        for channel in self._channels:
            if news and channel not in told:
                channel.miss(news)
        self._told += failed
        await self._mark(connection)

    async def _failed(self, connection: asyncpg.Connection) -> Sequence[asyncpg.Record]:
        since = self._clock() - TELL_WITHIN
        if await connection.fetch(UNTOLD, since, 1):
            await asyncio.sleep(GATHER.total_seconds())
        return await connection.fetch(UNTOLD, since, MOST)

    async def _news(self, connection: asyncpg.Connection, failed: Sequence[asyncpg.Record]) -> News:
        records = await connection.fetch(SAMPLE, [row["task_id"] for row in failed[:SAMPLES]])
        at, tasks = self._clock(), [TaskRow(**record) for record in records]
        return News(
            at,
            codes=Counter(row["error_code"] or "unknown" for row in failed),
            samples=[Failure(task.task_id, task.filename, task.message(at)) for task in tasks],
            notices=self._standstill.take(),
        )

    async def _mark(self, connection: asyncpg.Connection) -> None:
        """Mark what was told; what cannot be marked while the database is away is kept for later."""
        while batch := self._told[:BATCH]:
            ids, replays = [row["task_id"] for row in batch], [row["replays"] for row in batch]
            await connection.execute(MARK, ids, replays, self._clock())
            del self._told[:BATCH]
