"""The channels that alerts go to, each with a patience and a memory of its own."""

import asyncio
import json
import os
import re
import sys
import time
from collections import deque
from datetime import datetime, timedelta

import structlog
from pydantic import SecretStr

from services.tracker.alerts.news import Message, News, compose

SEND_TIMEOUT = timedelta(seconds=30)
"""The longest that a channel may take for a message; then its courier is killed. Stays below the courier's lifetime."""

MESSAGE_INTERVAL = timedelta(minutes=1)
"""Between two messages to a channel; what happens meanwhile is folded into the next one."""

FIRST_PAUSE = timedelta(seconds=5)
"""After a channel has not taken a message; it doubles with each time that it happens again."""

LONGEST_PAUSE = timedelta(minutes=10)
"""No channel that is back waits longer for the message."""

TELL_WITHIN = timedelta(days=1)
"""News that is older helps nobody any more."""

logger = structlog.stdlib.get_logger()


class RefusedError(Exception):
    """A channel has not taken a message; the text says why and holds no part of the channel's URL."""


class Channel:
    """One channel.

    What it missed while another one took it is told as soon as it is back, if this process still lives then.

    Parameters
    ----------
    number
        Its place in ALERT_URLS, counted from 1; with the scheme of the URL its name in logs.
    """

    def __init__(self, number: int, url: SecretStr) -> None:
        self._url = url
        self._name = f"{number} ({scheme_of(url.get_secret_value())})"
        self._missed: deque[News] = deque()
        self._pause = FIRST_PAUSE
        self._ready_at = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether it may be told something now."""
        return time.monotonic() >= self._ready_at

    async def tell(self, news: News) -> bool:
        """Tell it, in one message, what it missed and the news; return whether it took the message."""
        self._forget(news.at)
        if not news and not self._missed:
            return False
        try:
            await _hand_over(self._url, compose([*self._missed, news]))
        except RefusedError as error:
            logger.warning("alert not taken", channel=self._name, reason=str(error), again_in=str(self._pause))
            self._rest(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            return False
        self._missed.clear()
        self._rest(MESSAGE_INTERVAL)
        self._pause = FIRST_PAUSE
        return True

    def miss(self, news: News) -> None:
        """Keep news that another channel took."""
        self._forget(news.at)
        self._missed.append(news)

    def _rest(self, pause: timedelta) -> None:
        self._ready_at = time.monotonic() + pause.total_seconds()

    def _forget(self, at: datetime) -> None:
        while self._missed and self._missed[0].at < at - TELL_WITHIN:
            old = self._missed.popleft()
            logger.warning("alert given up", channel=self._name, failures=old.codes.total(), notices=len(old.notices))


def scheme_of(url: str) -> str:
    """Return the part of a URL that is no secret."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)
    return scheme[0] if scheme else "no scheme"


async def _hand_over(url: SecretStr, message: Message) -> None:
    """Have a courier deliver a message, and kill it where it takes too long or nobody waits for it any more."""
    courier = await _courier()
    order = {"url": url.get_secret_value(), "title": message.title, "body": message.body, "good": message.good}
    try:
        async with asyncio.timeout(SEND_TIMEOUT.total_seconds()):
            reason, _ = await courier.communicate(json.dumps(order).encode())
    except TimeoutError:
        raise RefusedError(f"it has not answered within {SEND_TIMEOUT.total_seconds():g} s") from None
    finally:
        if courier.returncode is None:
            courier.kill()
            await courier.wait()
    if courier.returncode:
        raise RefusedError(reason.decode() or f"its courier ended with {courier.returncode}")


async def _courier() -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "services.tracker.alerts.courier"),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise RefusedError(f"no courier can be started: {error.strerror}") from error
