"""Strikes at this process where its orders say, by wrapping what every service does: no service knows of it."""

import asyncio
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer

from shared.errors import PermanentError, TransientError
from shared.kafka import Outgoing, Publisher
from shared.stage import StageRunner
from tests.support.saboteur.orders import Action, Moment, Order, Point, read, take


class Saboteur:
    """Strikes by the orders in a folder, which are looked at anew at every hit.

    Parameters
    ----------
    orders
        The folder; it need not exist yet.
    """

    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._hits: Counter[Path] = Counter()
        self._statements: defaultdict[asyncpg.Connection, list[str]] = defaultdict(list)

    def install(self) -> None:
        """Wrap the points of this process."""
        _replace(Publisher, "publish", self._publish)
        _replace(AIOKafkaConsumer, "commit", self._commit)
        _replace(asyncpg.Connection, "execute", self._execute)
        _replace(asyncpg.Connection, "_execute", self._execute_with_arguments)
        _replace(StageRunner, "__init__", self._register)

    @asynccontextmanager
    async def _around(self, point: Point, names: Iterable[str]) -> AsyncIterator[None]:
        known = list(names)
        await self._reach(point, Moment.BEFORE, known)
        yield
        await self._reach(point, Moment.AFTER, known)

    async def _reach(self, point: Point, moment: Moment, names: list[str]) -> None:
        for path in sorted(self._orders.glob("*.json")):
            order = read(path)
            if order is not None and order.meets(point, moment, names):
                self._hits[path] += 1
                if order.again or (self._hits[path] == order.nth and take(path)):
                    await _strike(order)

    def _publish(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def publish(publisher: Publisher, records: Iterable[Outgoing]) -> Any:
            listed = list(records)
            async with self._around(Point.PUBLISH, (record.topic for record in listed)):
                return await original(publisher, listed)

        return publish

    def _commit(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def commit(consumer: AIOKafkaConsumer, *args: Any, **options: Any) -> Any:
            async with self._around(Point.OFFSET_COMMIT, consumer.subscription()):
                return await original(consumer, *args, **options)

        return commit

    def _execute(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Wrap what asyncpg ends its transactions with, a query without arguments."""

        async def execute(connection: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            if query != "COMMIT;":
                return await original(connection, query, *args, **options)
            async with self._around(Point.DATABASE_COMMIT, self._statements.pop(connection, [])):
                return await original(connection, query, **options)

        return execute

    def _execute_with_arguments(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Wrap what all queries with arguments go through; outside a transaction each is its own commit."""

        async def execute(connection: asyncpg.Connection, query: str, *args: Any, **options: Any) -> Any:
            if connection.is_in_transaction():
                self._statements[connection].append(query)
                return await original(connection, query, *args, **options)
            self._statements.pop(connection, None)  # those of a transaction that was rolled back
            async with self._around(Point.DATABASE_COMMIT, [query]):
                return await original(connection, query, *args, **options)

        return execute

    def _register(self, original: Callable[..., None]) -> Callable[..., None]:
        def register(
            runner: StageRunner[Any],
            topic: Any,
            event: Any,
            handle: Callable[[Any], Awaitable[Any]],
            *args: Any,
            **options: Any,
        ) -> None:
            @wraps(handle)
            async def work(event: Any) -> Any:
                async with self._around(Point.WORK, [getattr(event, "filename", "")]):
                    return await handle(event)

            original(runner, topic, event, work, *args, **options)

        return register


def _replace(owner: type, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, wraps(original)(wrapper(original)))


async def _strike(order: Order) -> None:
    match order.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.FAIL:
            raise TransientError("sabotaged")
        case Action.REFUSE:
            raise PermanentError("sabotaged")
        case Action.LINGER:
            await asyncio.sleep(order.seconds)
