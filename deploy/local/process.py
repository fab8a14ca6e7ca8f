"""Operating system processes that cannot outlive this one, each in a session of its own.

Ctrl-C at the terminal therefore reaches only this process, which stops the others in order.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from deploy.local import launch, orphans
from deploy.local.errors import LocalStackError

TAIL_BYTES = 4000
"""About 30 lines of a log, which is what an error message shows."""

BARE_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
"""For the servers: nothing such as PGDATA or JAVA_TOOL_OPTIONS of the caller may reach them."""

ROOT = Path(__file__).parents[2]
"""Where the packages of this project lie; a folder of the same name in the working directory must not be taken."""


def python_environment() -> dict[str, str]:
    """Return the caller's environment, in which a Python finds this project from everywhere."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


@dataclass(frozen=True, kw_only=True)
class User:
    """Whom a process runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """How a process is started and stopped.

    Attributes
    ----------
    command
        Absolute path of the program, and its arguments.
    log
        The file to which its output is appended.
    user
        Whom it runs as; ourselves if None, and only root may choose.
    stop_signal, grace
        What asks it to stop, and how long it may take before it is killed.
    orphan_signal
        What it gets when this process dies.
    """

    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=lambda: BARE_ENVIRONMENT)
    cwd: Path | None = None
    user: User | None = None
    pass_fds: Sequence[int] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    grace: timedelta = timedelta(seconds=20)  # services finish what they have in hand within 15 s


class Process:
    """A running program.

    Parameters
    ----------
    program
        What it runs.
    child
        The process, leader of its own session.
    offset
        Size of the log before it started.
    """

    def __init__(self, program: Program, child: asyncio.subprocess.Process, offset: int) -> None:
        self._program = program
        self._child = child
        self._offset = offset
        self.pid = child.pid

    async def wait(self) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        return await self._child.wait()

    async def stop(self) -> None:
        """Ask it to stop, kill it if it does not, and with it whatever it left in its session."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(self._program.stop_signal)
        try:
            async with asyncio.timeout(self._program.grace.total_seconds()):
                await self._child.wait()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await self._child.wait()

    def kill(self) -> None:
        """Kill it and whatever it started in its session; its id is not given away while that lives."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def tail(self) -> str:
        """Return the last lines that it wrote."""
        with self._program.log.open("rb") as log:
            log.seek(max(self._offset, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace").strip() or "(it wrote nothing)"


class Processes:
    """Starts processes, and sees to it that they end with this one.

    Parameters
    ----------
    record
        Where they are written down.
    """

    def __init__(self, record: orphans.RunRecord) -> None:
        self._record = record
        self._guard: asyncio.subprocess.Process | None = None

    async def open(self) -> None:
        """Start the guard, which ends the recorded processes when this process is gone."""
        script = [sys.executable, "-I", "-S", orphans.__file__, str(self._record.path)]
        self._guard = await asyncio.create_subprocess_exec(
            *script, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, cwd="/", start_new_session=True
        )

    async def close(self) -> None:
        """Let the guard go; what still runs is ended by it."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await self._guard.wait()

    async def start(self, program: Program) -> Process:
        """Start a program."""
        user = program.user or User(uid=-1, gid=-1)
        death = [os.getpid(), int(program.orphan_signal), user.uid, user.gid]
        with program.log.open("ab") as log:
            offset = log.tell()
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", launch.__file__, *map(str, death), *program.command),
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                env=program.env,
                cwd=program.cwd,
                pass_fds=program.pass_fds,
                start_new_session=True,
            )
        self._record.add(child.pid, program.orphan_signal)
        return Process(program, child, offset)

    def ended(self, process: Process) -> None:
        """Sweep the session of a process that has ended, and forget it."""
        process.kill()
        self._record.remove(process.pid)

    async def run(self, purpose: str, program: Program) -> None:
        """Run a program to its end.

        Raises
        ------
        LocalStackError
            If it fails, with the purpose and the last lines that it wrote.
        """
        process = await self.start(program)
        try:
            code = await process.wait()
        finally:
            process.kill()
            await process.wait()
            self.ended(process)
        if code != 0:
            raise LocalStackError(
                f"{purpose} failed with exit status {code}; {program.log} ends with:\n{process.tail()}"
            )
