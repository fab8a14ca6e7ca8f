"""Processor time of processes and all that they started, by the kernel's own books."""

import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

from deploy.local import LocalStack


class Meter:
    """A context that measures what processes use while it is open.

    Parameters
    ----------
    processes
        Process ids by the name under which they are counted.

    Attributes
    ----------
    seconds
        Wall time from entry to exit.
    cpu
        Processor seconds by name, with those of child processes, living or ended.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self.seconds = 0.0
        self.cpu: dict[str, float] = {}
        self._processes = dict(processes)
        self._began = 0.0
        self._before: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._before = self._read()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu = {name: used - self._before[name] for name, used in self._read().items()}

    def _read(self) -> dict[str, float]:
        return {name: _processor_seconds(pid) for name, pid in self._processes.items()}


def _processor_seconds(pid: int) -> float:
    """Return what a process, its living descendants and those that ended have used since they were started.

    Descendants come first: one that ends meanwhile is then found in the time that its parent has inherited.
    """
    root = psutil.Process(pid)
    total = 0.0
    for process in [*reversed(root.children(recursive=True)), root]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def processes_of(stack: LocalStack) -> dict[str, int]:
    """Return the process ids of a stack's parts by their names; raises `RuntimeError` where one does not run."""
    pids = {part.name: part.pid for part in stack.components}
    if gone := [name for name, pid in pids.items() if pid is None]:
        raise RuntimeError(f"{', '.join(gone)} died while it was measured; the figures would mean nothing")
    return {name: pid for name, pid in pids.items() if pid is not None}
