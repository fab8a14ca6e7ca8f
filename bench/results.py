"""What was measured, and under what conditions."""

import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Self

import psutil
from pydantic import BaseModel

from bench.freshness import Freshness
from bench.latency import Latency
from bench.throughput import Throughput
from shared.clock import now


class Conditions(BaseModel):
    """When, where and how something was measured.

    Attributes
    ----------
    load
        Average number of busy processes in the minute before: what else the machine had to do.
    """

    date: datetime
    command: str
    processor: str
    cores: int
    memory_gib: int
    system: str
    python: str
    load: float

    @classmethod
    def here(cls, command: str) -> Self:
        """Describe this machine, now."""
        return cls(
            date=now().replace(microsecond=0),
            command=command,
            processor=_processor(),
            cores=os.cpu_count() or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30),
            system=f"{platform.system()} {platform.release().split('-')[0]}",
            python=platform.python_version(),
            load=round(os.getloadavg()[0], 2),
        )


class Results(BaseModel):
    """What was measured, each part with its conditions; a part that a run leaves out stays as it was."""

    conditions: dict[str, Conditions] = {}
    latency: Latency | None = None
    freshness: Freshness | None = None
    throughput: Throughput | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read earlier results; none where there is no file."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
