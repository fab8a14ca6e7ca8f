"""Percentiles, and what is typical of several rounds."""

from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np
from pydantic import BaseModel


class Spread(BaseModel):
    """Percentiles of a duration, in milliseconds."""

    p50: float
    p95: float
    p99: float


def spread(seconds: Sequence[float]) -> Spread:
    """Return the percentiles of durations, which are given in seconds.

    Raises
    ------
    ValueError
        There are none: nothing was measured.
    """
    if not seconds:
        raise ValueError("nothing was measured, so there are no percentiles")
    p50, p95, p99 = (round(float(value) * 1000, 2) for value in np.percentile(seconds, (50, 95, 99)))
    return Spread(p50=p50, p95=p95, p99=p99)


def typical(rounds: Iterable[Spread]) -> Spread:
    """Return the median of each percentile over several rounds, so that one disturbed round does not show."""
    known = list(rounds)
    return Spread(
        p50=median(one.p50 for one in known),
        p95=median(one.p95 for one in known),
        p99=median(one.p99 for one in known),
    )
