"""The data folder: who may use it, and what it keeps from one run to the next."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from deploy.local import orphans, ports
from deploy.local.errors import LocalStackError

LEAST_DISK = 1 << 30
"""Bytes free at start: Kafka and PostgreSQL lay out 150 MB at once, and both take a full disk badly."""

LARGEST_LOG = 10 << 20
"""Bytes from which a log is put aside at start; one older log is kept."""


class DataFolder:
    """A folder that one stack at a time may use.

    Parameters
    ----------
    path
        The folder, made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.blobs = self.path / "blobs"
        self.kafka = self.path / "kafka"
        self.postgres = self.path / "postgres"
        self._logs = self.path / "logs"
        self._runs = self.path / "run"
        self._ports = self.path / "ports.json"
        self._lock: IO[str] | None = None

    def open(self) -> orphans.RunRecord:
        """Take the folder, and end what a crashed stack has left in it.

        Returns
        -------
        RunRecord
            Where this stack's processes are to be written down.

        Raises
        ------
        LocalStackError
            If the folder cannot be written, has too little space, or is in use.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            for folder in (self.blobs, self._logs, self._runs):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise LocalStackError(
                f"cannot write to the data folder {self.path} ({error.strerror}): "
                "choose another with --data, or get the right to write there"
            ) from error
        free = shutil.disk_usage(self.path).free
        if free < LEAST_DISK:
            raise LocalStackError(
                f"only {free >> 20} MiB are free for the data folder {self.path}, {LEAST_DISK >> 20} MiB are needed: "
                "make space, or choose another folder with --data"
            )
        for record in self._runs.glob("*.json"):
            orphans.end_recorded(record)
        return orphans.RunRecord(self._runs / f"{os.getpid()}.json")

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            self._lock.close()

    def log(self, name: str) -> Path:
        """Return the log of a component; a big one is put aside first."""
        path = self._logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LARGEST_LOG:
            path.replace(path.with_suffix(".log.1"))
        path.touch()
        return path

    def secret(self, name: str) -> str:
        """Return a secret, made at its first use; only the folder's owner can read its file."""
        path = self.path / f"{name}.secret"
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(24))
            draft.replace(path)
        return path.read_text()

    def ports(self, names: Sequence[str]) -> dict[str, int]:
        """Return a port for each name: that of the last run where it is still free."""
        kept = {name: port for name, port in self.last_ports().items() if ports.is_free(port)}
        missing = [name for name in names if name not in kept]
        kept |= dict(zip(missing, ports.pick(len(missing), kept.values()), strict=True))
        self._ports.write_text(json.dumps(kept))
        return {name: kept[name] for name in names}

    def last_ports(self) -> dict[str, int]:
        """Return the ports of the stack that runs here now, or ran here last; empty where none ever did."""
        known: dict[str, int] = json.loads(self._ports.read_text()) if self._ports.exists() else {}
        return known

    def _take_lock(self) -> None:
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise LocalStackError(
                f"another paperlane up is running (pid {owner}) on the data folder {self.path}: "
                "stop it, or choose another folder with --data"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
