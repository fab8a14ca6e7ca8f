"""How the delays before further attempts are written: one by one, or as an exponential series."""

from datetime import timedelta

LONGEST_DELAY = timedelta(days=1)
"""A delay's limit; stays well below the time for which a retry topic keeps its records."""

MOST_DELAYS = 20
"""Each different delay needs a topic for every stage."""

RIGHT = "whole seconds above 0, separated by commas, such as 60,120,240, or the same as base=60,factor=2,count=3"


def read_delays(value: object) -> object:
    """Read `60,120,240`, or the same written as `base=60,factor=2,count=3`; what is no text is left as it is.

    Raises
    ------
    ValueError
        It is neither, or too long, or too many.
    """
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    delays = _series(parts) if "=" in value else tuple(map(_whole, parts))
    if len(delays) > MOST_DELAYS:
        raise ValueError(f"more than {MOST_DELAYS} delays are too many")
    if max(delays, default=0) > LONGEST_DELAY.total_seconds():
        raise ValueError(f"{max(delays)} s is too long: give {LONGEST_DELAY.total_seconds():.0f}, a day, at most")
    return tuple(timedelta(seconds=delay) for delay in delays)


def _series(parts: list[str]) -> tuple[int, ...]:
    """Return base, base * factor, base * factor ** 2 and so on, `count` of them."""
    given = [tuple(map(str.strip, part.partition("=")[::2])) for part in parts]
    if sorted(name for name, _ in given) != ["base", "count", "factor"]:
        raise ValueError(f"{', '.join(parts)} must name base, factor and count, each once: give {RIGHT}")
    base, count, factor = (_whole(number) for _, number in sorted(given))
    return tuple(base * factor**n for n in range(min(count, MOST_DELAYS + 1)))


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{text!r} is wrong: give {RIGHT}")
    return int(text)
