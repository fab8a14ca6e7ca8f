"""Hands one alert to one channel, as a process of its own.

The library that speaks to the channels is synchronous and bounds no call as a whole; a process can be killed. The URL
of a channel holds secrets, so it comes by stdin and not as an argument, and nothing that the library logs leaves this
process: only an outcome, in words of our own.
"""

import json
import logging
import re
import signal
import sys
from datetime import timedelta

import apprise
from apprise import Apprise, AppriseAsset, LogCapture, NotifyBase, NotifyFormat, NotifyType, OverflowMode

LIFETIME = timedelta(minutes=2)
"""After it the process ends by itself, should its parent have been killed before it could kill this one."""

# The library tells of a URL that it cannot use by logging it.
logging.getLogger(apprise.LOGGER_NAME).setLevel(logging.CRITICAL)


def open_channel(url: str) -> NotifyBase | None:
    """Return what speaks to the channel of a URL, or None where it is no URL of any known kind."""
    return Apprise.instantiate(url, asset=AppriseAsset(app_id="Paperlane", app_desc="Paperlane"))


def deliver(url: str, title: str, body: str, *, good: bool) -> str | None:
    """Hand over a message, and return None if the channel has taken it, else why not.

    The message is plain text, which the library escapes for channels that show HTML or mark-down, and is cut where a
    channel takes less: one alert is one message.
    """
    channel = open_channel(url)
    if channel is None:
        return "its URL is not understood"
    if channel.overflow_mode == OverflowMode.UPSTREAM:
        channel.overflow_mode = OverflowMode.TRUNCATE
    kind = NotifyType.SUCCESS if good else NotifyType.FAILURE
    with LogCapture(level=logging.WARNING) as log:
        taken = channel.notify(title=title, body=body, body_format=NotifyFormat.TEXT, notify_type=kind)
    if taken:
        return None
    status = re.search(r"\berror=(\d{3})\b", log.getvalue())
    return f"it answers with status {status[1]}" if status else "it refuses the message or cannot be reached"


def main() -> None:
    """Deliver what stdin says; where the channel does not take it, say why on stdout and exit with 1."""
    signal.alarm(int(LIFETIME.total_seconds()))
    order = json.load(sys.stdin)
    reason = deliver(order["url"], order["title"], order["body"], good=order["good"])
    if reason is not None:
        sys.stdout.write(reason)
        sys.exit(1)


if __name__ == "__main__":
    main()
