"""The embedded stack for real: Kafka, PostgreSQL, stand-ins for the services, and every way to stop or break them."""

import contextlib
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from deploy.local import LocalStack, LocalStackError, StackOptions, State, jars, orphans, ports

ROOT = Path(__file__).parents[2]

# A service that answers with the id of a child, which ignores every polite request to end.
STAND_IN = """
import asyncio, pathlib, subprocess, sys
STUBBORN = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", STUBBORN])

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})
        child.kill()
        child.wait()
        while pathlib.Path(__file__).with_name("hang").exists():
            await asyncio.sleep(1)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(child.pid).encode()})
"""

# `paperlane up` with stand-ins for the services.
DRIVER = """
import sys
from pathlib import Path
from cli.up import run
from deploy.local import StackOptions

def command(name, port):
    return (sys.executable, "-m", "uvicorn", "stand_in:app", "--app-dir", str(Path(__file__).parent),
            "--port", str(port), "--log-level", "warning")

services = ("gateway", "parser")
sys.exit(run(StackOptions(data=Path(sys.argv[1]), port=0, services=services, command=command, migrate=())))
"""

SEARCH_PATH = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
"""For a Python outside the environment of the tests."""

LINE_LIMIT = 60
"""Seconds: a stack on a busy machine is ready in less than ten."""


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a folder that every user can reach (pytest's own are private), with the stand-ins in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "stand_in.py").write_text(STAND_IN)
        (folder / "driver.py").write_text(DRIVER)
        yield folder


@pytest.fixture
def private(place: Path) -> Iterator[Path]:
    """Yield a folder that only its owner can reach, as /root is one; nobody may open it up."""
    place.chmod(0o700)
    yield place
    assert place.stat().st_mode & 0o777 == 0o700


def stand_ins(place: Path, *services: str, data: str = "data", port: int = 0) -> StackOptions:
    def command(_name: str, number: int) -> Sequence[str]:
        folder = ("--app-dir", str(place))
        return (
            sys.executable,
            "-m",
            "uvicorn",
            "stand_in:app",
            *folder,
            "--port",
            str(number),
            "--log-level",
            "warning",
        )

    return StackOptions(data=place / data, port=port, services=services, command=command, migrate=())


@contextlib.asynccontextmanager
async def admin(stack: LocalStack) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=stack.environment["KAFKA_BOOTSTRAP_SERVERS"])
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def query(stack: LocalStack, sql: str) -> object:
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"])
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def send(stack: LocalStack, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=stack.environment["KAFKA_BOOTSTRAP_SERVERS"]) as producer:
        await producer.send_and_wait("letters", value)


async def first_letter(stack: LocalStack) -> bytes | None:
    servers = stack.environment["KAFKA_BOOTSTRAP_SERVERS"]
    async with AIOKafkaConsumer("letters", bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
        record = await consumer.getone()
        return bytes(record.value) if record.value else None


async def make_letters(stack: LocalStack) -> None:
    async with admin(stack) as client:
        await client.create_topics([NewTopic("letters", num_partitions=1, replication_factor=1)])


def recorded(data: Path) -> list[int]:
    """Return the ids of all processes that the stack on this folder has started."""
    (record,) = (data / "run").glob("*.json")
    return [int(pid) for pid in json.loads(record.read_text())["started"]]


def public_python() -> str:
    """Return a Python of our version that user nobody can run."""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            subprocess.run([python, "-c", ""], user="nobody", check=True)
            return python
    pytest.skip("user nobody has no Python of this version")


def owner(pid: int) -> str:
    return Path(f"/proc/{pid}").owner()


def wait_for_end(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([handle], [], [], LINE_LIMIT)
        os.close(handle)
        assert ended, f"process {pid} still runs"


class Up:
    """A running `paperlane up`."""

    def __init__(self, place: Path, python: str = sys.executable, **options: Any) -> None:
        env = {**os.environ, "PYTHONPATH": SEARCH_PATH, "PYTHONUNBUFFERED": "1", "HOME": str(place)}
        env.setdefault("XDG_CACHE_HOME", str(jars.cache_folder().parents[1]))
        if cache := options.pop("cache", None):
            env["XDG_CACHE_HOME"] = str(cache)
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [python, str(place / "driver.py"), str(place / "data")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            start_new_session=True,
            cwd=place,
            **options,
        )
        self.lines: list[str] = []

    def until(self, pattern: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if re.search(pattern, line):
                return line
        raise AssertionError("\n".join(["it ended too early:", *self.lines]))

    def url(self) -> str:
        self.until("Paperlane is ready at")
        line = next(line for line in self.lines if "gateway: ready" in line)
        return "http://" + line.rpartition(" ")[2]

    def end(self) -> int:
        assert self.process.stdout is not None
        self.lines += [line.strip() for line in self.process.stdout]
        return self.process.wait(LINE_LIMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


async def test_servers_work_and_keep_their_data(place: Path) -> None:
    async with LocalStack(stand_ins(place)) as stack:
        await make_letters(stack)
        await send(stack, b"hello")
        await query(stack, "CREATE EXTENSION vector")
        await query(stack, "CREATE TABLE points AS SELECT '[1,2,3]'::vector AS point")
        before = dict(stack.environment)
        assert stack.environment["BLOB_URL"] == f"file://{place}/data/blobs"
    async with LocalStack(stand_ins(place)) as stack:
        assert stack.environment == before
        assert await first_letter(stack) == b"hello"
        assert await query(stack, "SELECT point <-> '[1,2,5]' FROM points") == 2
        assert await query(stack, "SHOW fsync") == "on"


async def test_ports_that_are_taken_meanwhile_are_replaced(place: Path) -> None:
    async with LocalStack(stand_ins(place)) as stack:
        await make_letters(stack)
        await send(stack, b"hello")
        taken = {part.port for part in stack.servers.values()}
    chosen = json.loads((place / "data" / "ports.json").read_text())
    with contextlib.ExitStack() as sockets:
        for port in chosen.values():
            sockets.enter_context(socket.create_server(("127.0.0.1", port)))
        async with LocalStack(stand_ins(place)) as stack:
            assert taken.isdisjoint(part.port for part in stack.servers.values())
            assert await first_letter(stack) == b"hello"


async def test_a_part_that_dies_is_started_again(place: Path) -> None:
    async with LocalStack(stand_ins(place, "gateway")) as stack:
        await make_letters(stack)
        for part in stack.components:
            before = part.pid
            assert before is not None
            await part.kill()
            assert (part.state, part.pid) == (State.RESTARTING, None)
            await part.ready()
            assert (part.restarts, part.pid != before) == (1, True)
        await send(stack, b"hello")
        assert await query(stack, "SELECT 1") == 1
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{stack.url}/readyz")).status_code == 200


async def test_replicas_have_their_own_ports(place: Path) -> None:
    base = next(port for port in ports.pick(50) if ports.is_free(port + 10))
    options = stand_ins(place, "gateway", port=base)
    options = StackOptions(**{**vars(options), "replicas": {"gateway": 2}})
    async with LocalStack(options) as stack:
        assert [part.port for part in stack.services["gateway"]] == [base, base + 10]
        assert [part.name for part in stack.services["gateway"]] == ["gateway", "gateway-2"]


async def test_a_service_that_always_dies_ends_the_start(place: Path) -> None:
    (place / "stand_in.py").write_text("raise SystemExit('no model for me')")
    with pytest.raises(LocalStackError, match=r"(?s)gateway died 5 times in a row.*no model for me"):
        async with LocalStack(stand_ins(place, "gateway")):
            pass
    assert not list((place / "data" / "run").glob("*.json"))


async def test_a_failed_migration_ends_the_start(place: Path) -> None:
    migrate = (sys.executable, "-c", "raise SystemExit('no such table')")
    with pytest.raises(LocalStackError, match=r"(?s)database schema failed with exit status 1.*no such table"):
        async with LocalStack(StackOptions(data=place / "data", port=0, services=(), migrate=migrate)):
            pass


async def test_one_folder_has_one_stack(place: Path) -> None:
    async with LocalStack(stand_ins(place)):
        with pytest.raises(LocalStackError, match=rf"running \(pid {os.getpid()}\) on the data folder"):
            async with LocalStack(stand_ins(place)):
                pass


async def test_own_servers_are_used(place: Path) -> None:
    async with LocalStack(stand_ins(place)) as theirs:
        env = theirs.environment
        options = StackOptions(**{**vars(stand_ins(place, data="other")), "env": env})
        async with LocalStack(options) as ours:
            assert ours.environment == env
            assert ours.components == []


def test_ctrl_c_stops_all_in_order(place: Path) -> None:
    with Up(place) as up:
        up.url()
        pids = recorded(place / "data")
        assert len(pids) == 4
        up.process.send_signal(signal.SIGINT)
        assert up.end() == 0
    stopped = [line.split()[-2] for line in up.lines if line.endswith(": stopped")]
    assert stopped == ["gateway:", "parser:", "kafka:", "postgres:"]
    assert up.lines[-1] == "Stopped"
    assert [pid for pid in pids if orphans.status(pid)] == []


def test_a_second_ctrl_c_does_not_wait(place: Path) -> None:
    (place / "hang").touch()
    with Up(place) as up:
        up.url()
        pids = recorded(place / "data")
        up.process.send_signal(signal.SIGINT)
        up.until("gateway: stopping")
        up.process.send_signal(signal.SIGINT)
        assert up.end() == 130
    assert [pid for pid in pids if orphans.status(pid)] == []


def test_a_signal_during_the_start_stops_it(place: Path) -> None:
    with Up(place) as up:
        up.until("postgres: ready")
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0
    assert not list((place / "data" / "run").glob("*.json"))


def test_nothing_outlives_a_killed_supervisor(place: Path) -> None:
    with Up(place) as up:
        grandchild = int(httpx.get(up.url()).text)
        pids = [*recorded(place / "data"), grandchild]
        assert all(orphans.status(pid) for pid in pids)
        up.process.kill()
        wait_for_end(pids)
    with Up(place) as up:
        up.url()
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0


def test_the_next_start_ends_what_a_killed_one_left(place: Path) -> None:
    with Up(place) as up:
        up.url()
        pids = recorded(place / "data")
        stopped = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().find(b"java") >= 0]
        for pid in stopped:  # cannot follow its death signal
            os.kill(pid, signal.SIGSTOP)
        up.process.kill()
    with Up(place) as up:
        up.url()
        wait_for_end(pids)
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_normal_user_can_run_it(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    shutil.copytree(jars.cache_folder(), place / "cache" / "paperlane" / jars.cache_folder().name)
    (place / "data").mkdir()
    os.chown(place / "data", nobody.pw_uid, nobody.pw_gid)
    with Up(
        place, public_python(), cache=place / "cache", user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=()
    ) as up:
        up.url()
        assert {owner(pid) for pid in recorded(place / "data")} == {"nobody"}
        up.process.send_signal(signal.SIGINT)
        assert up.end() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up root")
async def test_root_needs_no_folder_that_others_can_reach(private: Path) -> None:
    async with LocalStack(stand_ins(private)) as stack:
        pid = stack.servers["postgres"].pid
        assert pid is not None
        assert owner(pid) == "nobody"
        assert await query(stack, "SELECT 1") == 1


def paperlane(*arguments: str, python: str = sys.executable, **options: Any) -> subprocess.CompletedProcess[str]:
    result: subprocess.CompletedProcess[str] = subprocess.run(
        [python, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": SEARCH_PATH},
        text=True,
        capture_output=True,
        timeout=LINE_LIMIT,
        check=False,
        **options,
    )
    return result


def test_a_port_in_use_is_one_clear_line(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = paperlane("up", "--data", str(place / "data"), "--port", str(port))
    expected = f"paperlane up: port {port} for the gateway is in use: choose another with --port, or stop its owner\n"
    assert (result.returncode, result.stderr) == (1, expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="root can become a user who may not write")
def test_a_folder_without_the_right_to_write_is_one_clear_line(place: Path) -> None:
    nobody = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
    result = paperlane("up", "--data", str(place / "data"), python=public_python(), **nobody)
    assert result.returncode == 1
    assert result.stderr.startswith(f"paperlane up: cannot write to the data folder {place}/data (Permission denied): ")
    assert result.stderr.count("\n") == 1


def test_wrong_usage_is_status_2() -> None:
    assert paperlane("up", "--parsers", "0").returncode == 2
