"""The five services as programs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import httpx

from deploy.local.component import Report
from deploy.local.process import ROOT, Program, python_environment

SERVICES = ("gateway", "parser", "embedder", "indexer", "tracker")
"""All of them, in the order of their ports and of their stop: who accepts work stops before those who do it."""

REPLICA_STEP = 10
"""Ports from one replica to the next of the same service."""

CONNECTION_GRACE = timedelta(seconds=5)
"""How long open requests, such as event streams, may go on at a stop; below the 20 s after which it is killed."""

PROBE_TIMEOUT = timedelta(seconds=5)
"""An answer about readiness may ask Kafka and PostgreSQL, which takes milliseconds when they are well."""


Command = Callable[[str, int], Sequence[str]]
"""Makes the command line of a service from its name and port."""


def service_command(name: str, port: int) -> Sequence[str]:
    """Return the command line that runs a service."""
    return (
        *(sys.executable, "-P", "-m", "uvicorn", f"services.{name}.main:create_app", "--factory"),
        *("--app-dir", str(ROOT), "--host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "warning", "--no-access-log"),
        *("--timeout-graceful-shutdown", str(CONNECTION_GRACE.seconds)),
        *(("--http", "services.gateway.connection:Connection") if name == "gateway" else ()),
    )


def migrate_command() -> Sequence[str]:
    """Return the command line that makes topics and schema."""
    return (sys.executable, "-P", "-m", "cli.main", "migrate")


def service_environment(stack: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service: the caller's, and where the servers of this stack are."""
    return {**python_environment(), "LOG_FORMAT": "json", **stack}


def service_port(first: int, name: str, replica: int) -> int:
    """Return a port; replicas count from 0."""
    return first + SERVICES.index(name) + REPLICA_STEP * replica


class Service:
    """What runs a replica of a service.

    Parameters
    ----------
    command
        Its command line; it answers GET /readyz on the port.
    port
        Where it listens.
    log
        Where its output goes.
    env
        Its environment.
    client
        What asks whether it is ready.
    """

    def __init__(
        self, command: Sequence[str], port: int, log: Path, env: Mapping[str, str], client: httpx.AsyncClient
    ) -> None:
        self._program = Program(command=command, log=log, env=env)
        self._client = client
        self._url = f"http://127.0.0.1:{port}/readyz"

    async def prepare(self, _report: Report) -> Program:
        """Return the program; there is nothing to make ready."""
        return self._program

    async def probe(self) -> str | None:
        """Ask whether it is ready: None if so, else what it says."""
        try:
            response = await self._client.get(self._url, timeout=PROBE_TIMEOUT.total_seconds())
        except httpx.HTTPError:
            return "does not answer yet"
        return None if response.status_code == httpx.codes.OK else f"{response.status_code} {response.text[:200]}"
