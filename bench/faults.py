"""`python -m bench.faults`: breaks a stack in every way of `tests/faults`, for long, and says what became of its tasks.

Takes about half an hour. The raw figures go to `bench/faults.json`, a table to the end of `docs/reliability.md`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bench.results import Conditions

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).with_name("faults.json")
PAGE = ROOT / "docs" / "reliability.md"
MARK = "<!-- figures -->"
"""What follows it on the page is written by this script."""

HEAD = """{mark}

## Figures

`{command}`, {date:%Y-%m-%d %H:%M} UTC; {cores} cores of {processor}, {memory_gib} GiB, {system}, Python {python};
`PAPERLANE_SEED={seed}`. Written by `bench/faults.py`. A task is lost if it was accepted and has no end. Duplicated are
units of work that were done more than once, each time beyond the first; none is counted twice. Recovery is the time
from the end of the fault until every task is over, with the work that was left to do. Uploads are cut off where the
connection broke before the answer, and refused with a clear error where a store was away; a few of either became tasks
all the same, for nobody knows of a commit that broke off, and are held to the same rules.

| scenario | faults | accepted | completed | failed | canceled | lost | duplicated | refused | cut off | recovery, s |
|---|---|---|---|---|---|---|---|---|---|---|
"""


class Faults(BaseModel):
    """What the fault suite found."""

    conditions: Conditions
    seed: int
    scenarios: list[dict[str, Any]]


def main() -> None:
    """Run the long version of the suite; its exit status is that of the tests."""
    report = FIGURES.with_suffix(".tmp")
    environment = os.environ | {"PAPERLANE_FAULTS": "long", "PAPERLANE_FAULTS_REPORT": str(report)}
    conditions = Conditions.here("make faults")
    tests = subprocess.run([sys.executable, "-m", "pytest", "tests/faults"], cwd=ROOT, env=environment, check=False)
    if report.exists():
        found = Faults(conditions=conditions, **json.loads(report.read_text()))
        report.unlink()
        FIGURES.write_text(found.model_dump_json(indent=2) + "\n")
        PAGE.write_text(PAGE.read_text().partition(MARK)[0] + section(found))
        print(f"Written to {FIGURES} and {PAGE}.")
    sys.exit(tests.returncode)


def section(found: Faults) -> str:
    """Return the figures as Markdown."""
    head = HEAD.format(mark=MARK, seed=found.seed, **found.conditions.model_dump())
    noted = (f"- {one['scenario']}: {one['measured']}" for one in found.scenarios if "measured" in one)
    return "\n".join([head + "\n".join(_rows(found.scenarios)), "", *noted]) + "\n"


def _rows(scenarios: list[dict[str, Any]]) -> Iterator[str]:
    for one in (one for one in scenarios if "accepted" in one):
        cut_off = one["unreached"] + one["unknown"]
        cells = (
            *(one["scenario"], one["faults"], one["accepted"], one["completed"], one["failed"], one["canceled"]),
            *(one["lost"], one["duplicated"], one["refused"], cut_off, f"{one['recovery_seconds']:.0f}"),
        )
        yield f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
