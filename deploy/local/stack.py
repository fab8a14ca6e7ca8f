"""The whole stack: the order in which its parts start and stop, and what each is told about the others."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from deploy.local import ports
from deploy.local.component import Component
from deploy.local.errors import LocalStackError
from deploy.local.folder import DataFolder
from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from deploy.local.process import Processes, Program
from deploy.local.services import (
    SERVICES,
    Command,
    Service,
    migrate_command,
    service_command,
    service_environment,
    service_port,
)


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """What to start.

    Attributes
    ----------
    data
        Folder for everything that survives a restart.
    port
        Port of the gateway; the other services take those that follow. 0 takes free ports for all.
    services
        Which services to start; with none there are Kafka and PostgreSQL, with topics and schema.
    replicas
        Processes of each service, 1 where it is not named.
    env
        Further environment of the services. With KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL or BLOB_URL in it, that
        part is yours, and nothing is started in its place.
    command
        Makes the command line of a service from its name and port; it answers GET /readyz there.
    migrate
        Command line that makes topics and schema; none if empty.
    """

    data: Path = Path(".paperlane")
    port: int = 8000
    services: Sequence[str] = SERVICES
    replicas: Mapping[str, int] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    command: Command = service_command
    migrate: Sequence[str] = field(default_factory=migrate_command)

    def __post_init__(self) -> None:
        if unknown := sorted({*self.services, *self.replicas} - {*SERVICES}):
            raise LocalStackError(f"unknown service {unknown[0]}: it is one of {', '.join(SERVICES)}")
        if few := [name for name, count in self.replicas.items() if count < 1]:
            raise LocalStackError(f"{few[0]} needs at least 1 replica, not {self.replicas[few[0]]}")


class LocalStack:
    """An async context in which the stack runs.

    Parameters
    ----------
    options
        What to start.
    changed
        Called after each change of a component's state.

    Attributes
    ----------
    environment
        KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL and BLOB_URL of this stack.
    servers
        The embedded servers, by name.
    services
        The replicas of each service, by name.
    stopping
        Whether it is being stopped, or already is.

    Raises
    ------
    LocalStackError
        On entry: if anything cannot start. Nothing is left running then.
    """

    def __init__(self, options: StackOptions, changed: Callable[[Component], None] = lambda _: None) -> None:
        self.environment: dict[str, str] = {}
        self.servers: dict[str, Component] = {}
        self.services: dict[str, tuple[Component, ...]] = {}
        self.stopping = False
        self._options = options
        self._changed = changed
        self._folder = DataFolder(options.data)
        self._processes: Processes | None = None
        self._http = httpx.AsyncClient(trust_env=False)  # a proxy has nothing to do with 127.0.0.1

    @property
    def url(self) -> str:
        """Where the first gateway answers."""
        return self.services["gateway"][0].url

    @property
    def components(self) -> Sequence[Component]:
        """All parts, in the order of their start."""
        return [*self.servers.values(), *(part for replicas in self.services.values() for part in replicas)]

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Wait until a part has failed for good, and raise its `LocalStackError`."""
        await _together(part.failed() for part in self.components)

    async def stop(self) -> None:
        """Stop all parts in order: each service, those that accept work first, then the servers."""
        self.stopping = True
        for replicas in self.services.values():
            await asyncio.gather(*(part.stop() for part in replicas))
        for server in self.servers.values():
            await server.stop()
        await self._http.aclose()
        if self._processes is not None:
            await self._processes.close()
        self._folder.close()

    def kill(self) -> None:
        """Kill all parts now; a `stop` under way ends by that."""
        for part in self.components:
            part.kill_for_good()

    async def _start(self) -> None:
        processes = Processes(self._folder.open())
        self._processes = processes
        self._plan_servers(processes)
        self._plan_services(processes)
        await processes.open()
        await _together(server.start() for server in self.servers.values())
        if self._options.migrate:
            log = self._folder.log("migrate")
            program = Program(command=self._options.migrate, log=log, env=self._environment())
            await processes.run("making topics and database schema", program)
        await _together(part.start() for replicas in self.services.values() for part in replicas)

    def _plan_servers(self, processes: Processes) -> None:
        chosen = self._folder.ports(("kafka", "controller", "postgres"))
        kafka = Kafka(self._folder, processes, chosen["kafka"], chosen["controller"])
        postgres = Postgres(self._folder, processes, chosen["postgres"])
        embedded = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.servers,
            "DATABASE_URL": postgres.url,
            "BLOB_URL": self._folder.blobs.as_uri(),
        }
        given = self._options.env
        self.environment = {name: given.get(name) or own for name, own in embedded.items()}
        if not given.get("KAFKA_BOOTSTRAP_SERVERS"):
            self.servers["kafka"] = Component("kafka", chosen["kafka"], kafka, processes, self._changed)
        if not given.get("DATABASE_URL"):
            self.servers["postgres"] = Component("postgres", chosen["postgres"], postgres, processes, self._changed)

    def _plan_services(self, processes: Processes) -> None:
        wanted = [name for name in SERVICES if name in self._options.services]
        replicas = [(name, number) for name in wanted for number in range(self._options.replicas.get(name, 1))]
        parts: dict[str, list[Component]] = {name: [] for name in wanted}
        for (name, number), port in zip(replicas, self._service_ports(replicas), strict=True):
            parts[name].append(self._service(processes, name, number, port))
        self.services = {name: tuple(components) for name, components in parts.items()}

    def _service_ports(self, replicas: Sequence[tuple[str, int]]) -> Sequence[int]:
        if self._options.port == 0:
            return ports.pick(len(replicas))
        chosen = [service_port(self._options.port, name, number) for name, number in replicas]
        for (name, _), port in zip(replicas, chosen, strict=True):
            ports.require(port, name)
        return chosen

    def _service(self, processes: Processes, name: str, number: int, port: int) -> Component:
        label = name if number == 0 else f"{name}-{number + 1}"
        command = self._options.command(name, port)
        service = Service(command, port, self._folder.log(label), self._environment(), self._http)
        return Component(label, port, service, processes, self._changed)

    def _environment(self) -> Mapping[str, str]:
        return service_environment({**self._options.env, **self.environment})


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it at once; the first error ends the rest, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in work:
                group.create_task(part)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
