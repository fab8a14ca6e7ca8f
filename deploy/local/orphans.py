"""What a stack started, written down, so that its processes are ended when the stack itself cannot do it.

Two readers end what is still there: a guard process, started with the stack, when the stack has died in any way
(the kernel ends the direct children, the guard also theirs), and the next stack on the same folder. A process is
ours only if its id, its start time and the boot of the machine are those recorded, so a reused id is never harmed.

Remaining race: a process that was started but not yet recorded when the stack is killed; the kernel's death signal
ends it. This module is also the guard's script (`python -I -S orphans.py RECORD`), so it imports nothing but the
standard library.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")

END_GRACE = timedelta(seconds=10)
"""Kafka stops in 0.3 s, PostgreSQL in 0.1 s, both longer with much to write; then they are killed."""

END_POLL = timedelta(milliseconds=20)
"""A foreign process can only be polled for its end."""


class Status(NamedTuple):
    """What /proc says of a living process."""

    session: int
    ticks: int


def status(pid: int) -> Status | None:
    """Return session and start time (clock ticks since boot) of a process, or None if it is dead or a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else Status(session=int(fields[3]), ticks=int(fields[19]))


def processes() -> dict[int, Status]:
    """Return all living processes."""
    found = {int(entry.name): status(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdecimal()}
    return {pid: state for pid, state in found.items() if state is not None}


def working_in(folder: Path) -> list[int]:
    """Return the living processes whose working directory is this folder, as far as we may see them."""
    pids = []
    for pid in processes():
        with contextlib.suppress(OSError):
            if (PROC / str(pid) / "cwd").samefile(folder):
                pids.append(pid)
    return pids


def _boot() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


class RunRecord:
    """The processes of one stack, in a JSON file.

    Parameters
    ----------
    path
        Where it lies; one file for each stack that ever ran, removed when it stopped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: dict[str, tuple[int, int]] = {}

    def add(self, pid: int, orphan_signal: int) -> None:
        """Record a process that leads its own session, and the signal that ends it as an orphan."""
        if (state := status(pid)) is not None:
            self._started[str(pid)] = (state.ticks, orphan_signal)
            self._write()

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        if self._started.pop(str(pid), None):
            self._write()

    def _write(self) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"boot": _boot(), "started": self._started}))
        draft.replace(self.path)


def end_recorded(path: Path) -> None:
    """End every process of a record that still runs, with all of its session, and remove the record."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        record = {"boot": None, "started": {}}
    if record["boot"] == _boot():
        started = {int(pid): (ticks, sig) for pid, (ticks, sig) in record["started"].items()}
        _end(started)
    path.unlink(missing_ok=True)


def end_processes(pids: list[int], sig: int) -> None:
    """End processes by a signal, and by SIGKILL if that is not enough."""
    _signal(pids, sig)
    if not _wait(lambda: all(status(pid) is None for pid in pids)):
        _signal(pids, signal.SIGKILL)
        _wait(lambda: all(status(pid) is None for pid in pids))


def _end(started: dict[int, tuple[int, int]]) -> None:
    for pid, (ticks, sig) in started.items():
        if (state := status(pid)) is not None and state.ticks == ticks:
            _signal([pid], sig)
        if sig == signal.SIGKILL:  # a session outlives its leader, and its id is not given away before it ends
            _signal(_members({pid: (ticks, sig)}), sig)
    if not _wait(lambda: not _members(started)):
        _signal(_members(started), signal.SIGKILL)
        _wait(lambda: not _members(started))


def _members(started: dict[int, tuple[int, int]]) -> list[int]:
    """Return who lives in the recorded sessions; a session whose leader started at another time is not ours."""
    alive = processes()
    ours = {pid for pid, (ticks, _) in started.items() if pid not in alive or alive[pid].ticks == ticks}
    return [pid for pid, state in alive.items() if state.session in ours and state.ticks >= started[state.session][0]]


def _signal(pids: list[int], sig: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)


def _wait(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + END_GRACE.total_seconds()
    while not (ended := done()) and time.monotonic() < deadline:
        time.sleep(END_POLL.total_seconds())
    return ended


def main() -> None:
    """Wait until whoever holds the other end of our standard input is gone, then end what it left."""
    sys.stdin.buffer.read()
    end_recorded(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
