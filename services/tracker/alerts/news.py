"""What an alert says: plain text for people, of bounded length, whatever file names and errors hold."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from uuid import UUID

SAMPLES = 10
"""Failed tasks that a message names; a thousand of one cause are told by their number."""

MOST_CODES = 10
"""Error codes that a message counts one by one."""

MOST_NOTICES = 20
"""Notices of one message, the latest ones; a channel that was away for a day has no use for more."""

MAX_NAME = 80
"""Characters of a file name or an error code."""

MAX_MESSAGE = 200
"""Characters of what happened: ten of them and their names fit into a chat message of 4,000 characters."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed task that a message names."""

    task_id: UUID
    filename: str
    message: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that began or is over.

    Attributes
    ----------
    headline
        A few words.
    text
        One line.
    good
        Whether it is over.
    """

    headline: str
    text: str
    good: bool


@dataclass(frozen=True, slots=True)
class News:
    """What there is to tell at a time.

    Attributes
    ----------
    codes
        How many tasks failed, by error code.
    samples
        Some of them, `SAMPLES` at the most.
    """

    at: datetime
    codes: Counter[str]
    samples: Sequence[Failure]
    notices: Sequence[Notice]

    def __bool__(self) -> bool:
        return bool(self.codes or self.notices)


@dataclass(frozen=True, slots=True)
class Message:
    """One alert; `good` if it tells of nothing bad."""

    title: str
    body: str
    good: bool


def compose(news: Sequence[News]) -> Message:
    """Fold pieces of news, the oldest first, into one message."""
    codes = sum((each.codes for each in news), Counter[str]())
    notices = [notice for each in news for notice in each.notices][-MOST_NOTICES:]
    headlines = list(dict.fromkeys(notice.headline for notice in notices))
    if codes:
        headlines.insert(0, f"{_tasks(codes.total())} failed")
    sections = ["\n".join(notice.text for notice in notices), _failures(codes, news)]
    return Message(
        title=f"Paperlane: {', '.join(headlines)}",
        body="\n\n".join(filter(None, sections)),
        good=not codes and all(notice.good for notice in notices),
    )


def harmless(text: str, length: int) -> str:
    """Return a foreign text as one line that no channel takes for a command, cut to a number of characters.

    Nothing in it mentions a person or a group, hides where a link leads, or turns the text around. Mark-up is no
    business of this function: messages are handed over as plain text.
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(line.split())
    line = line if len(line) <= length else f"{line[: length - 1]}…"
    return line.replace("@", "@\N{WORD JOINER}").replace("](", "] (")


def _failures(codes: Counter[str], news: Sequence[News]) -> str:
    if not codes:
        return ""
    samples = list(islice(chain.from_iterable(each.samples for each in news), SAMPLES))
    lines = [f"{_tasks(codes.total())} failed: {', '.join(_counts(codes))}"]
    lines += map(_failure, samples)
    if (others := codes.total() - len(samples)) > 0:
        lines.append(f"and {others} more")
    return "\n".join(lines)


def _counts(codes: Counter[str]) -> Iterable[str]:
    common = codes.most_common(MOST_CODES)
    yield from (f"{count} {harmless(code, MAX_NAME)}" for code, count in common)
    if (others := codes.total() - sum(count for _, count in common)) > 0:
        yield f"{others} of other codes"


def _failure(failure: Failure) -> str:
    name, message = harmless(failure.filename, MAX_NAME), harmless(failure.message, MAX_MESSAGE)
    return f"- {name} {message} (task {failure.task_id})"


def _tasks(count: int) -> str:
    return f"{count} task{'' if count == 1 else 's'}"
