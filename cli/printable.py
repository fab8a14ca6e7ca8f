"""Text and bytes of others as they can go to a terminal: nothing in them moves the cursor, colours or deceives."""

import json
from itertools import islice
from typing import Any

MAX_BYTES = 1_000
"""Of a value that is no JSON: enough to recognise it."""

MAX_TEXT = 200
"""Characters of a text within JSON; a chunk's first lines, and the beginning of a part's vectors."""

MAX_ITEMS = 3
"""Items of a list within JSON; those that follow look alike."""

MAX_LINES = 200
"""Lines of JSON in all: a few screens."""


def printable(text: str) -> str:
    """Return a text with all but its visible characters escaped: controls, line ends, marks that turn the direction."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def readable(data: bytes | None) -> str:
    """Return bytes as text where they are UTF-8, else escaped byte by byte; without a value, as `null`."""
    if data is None:
        return "null"
    try:
        return printable(data.decode())
    except UnicodeDecodeError:
        return repr(data)[2:-1]


def excerpt(value: bytes) -> list[str]:
    """Return the lines that show a record's value: indented and shortened JSON, else how it begins."""
    try:
        lines = json.dumps(_shortened(json.loads(value)), indent=2, ensure_ascii=False).splitlines()
    except (ValueError, RecursionError):  # no JSON, or JSON that is only meant to do harm
        more = len(value) - MAX_BYTES
        return [readable(value[:MAX_BYTES]), *([f"… {more:,} bytes more"] if more > 0 else [])]
    more = len(lines) - MAX_LINES
    return [*map(printable, lines[:MAX_LINES]), *([f"… {more:,} lines more"] if more > 0 else [])]


def _shortened(value: Any) -> Any:
    match value:
        case str() if len(value) > MAX_TEXT:
            return f"{value[:MAX_TEXT]}… {len(value) - MAX_TEXT:,} characters more"
        case list():
            more = [f"… {len(value) - MAX_ITEMS:,} more"] if len(value) > MAX_ITEMS else []
            return [*map(_shortened, islice(value, MAX_ITEMS)), *more]
        case dict():
            return {name: _shortened(content) for name, content in value.items()}
        case _:
            return value
