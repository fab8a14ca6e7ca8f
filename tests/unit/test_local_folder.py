import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.up import own_parts
from deploy.local import LocalStackError, StackOptions, folder, orphans
from deploy.local.folder import DataFolder

WAITING = "import signal; print(flush=True); signal.pause()"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process in a session of its own."""
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_what_a_crashed_stack_left_is_ended(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    (tmp_path / "run").mkdir()
    record = tmp_path / "run" / "7.json"
    orphans.RunRecord(record).add(stranger.pid, signal.SIGTERM)
    data = DataFolder(tmp_path)
    data.open()
    data.close()
    assert stranger.wait() == -signal.SIGTERM
    assert not record.exists()


@pytest.mark.parametrize(("key", "value"), [("boot", "another"), ("started", None)])
def test_a_process_that_only_has_a_recorded_id_is_spared(
    tmp_path: Path, stranger: subprocess.Popen[bytes], key: str, value: str | None
) -> None:
    record = tmp_path / "7.json"
    orphans.RunRecord(record).add(stranger.pid, signal.SIGKILL)
    written = json.loads(record.read_text())
    ticks, sig = written["started"][str(stranger.pid)]
    written[key] = value or {str(stranger.pid): [ticks - 1, sig]}
    record.write_text(json.dumps(written))
    orphans.end_recorded(record)
    assert orphans.status(stranger.pid) is not None


def test_a_torn_record_ends_nothing(tmp_path: Path) -> None:
    record = tmp_path / "7.json"
    record.write_text('{"boot": "x", "star')
    orphans.end_recorded(record)
    assert not record.exists()


def test_an_ended_process_is_forgotten(tmp_path: Path, stranger: subprocess.Popen[bytes]) -> None:
    record = orphans.RunRecord(tmp_path / "7.json")
    record.add(stranger.pid, signal.SIGKILL)
    record.remove(stranger.pid)
    orphans.end_recorded(record.path)
    assert orphans.status(stranger.pid) is not None


def test_processes_are_found_by_their_working_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert orphans.working_in(tmp_path) == [process.pid]
        orphans.end_processes([process.pid], signal.SIGKILL)


def test_a_folder_is_free_again_after_it_was_closed(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path), DataFolder(tmp_path)
    first.open()
    with pytest.raises(LocalStackError, match=rf"another paperlane up is running \(pid {os.getpid()}\)"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_secret_stays_and_is_private(tmp_path: Path) -> None:
    secret = DataFolder(tmp_path).secret("postgres")
    assert len(secret) == 48
    assert DataFolder(tmp_path).secret("postgres") == secret
    assert (tmp_path / "postgres.secret").stat().st_mode & 0o777 == 0o600


def test_a_big_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LARGEST_LOG", 5)
    data = DataFolder(tmp_path)
    data.open()
    data.log("parser").write_text("old words")
    assert data.log("parser").read_text() == ""
    assert (tmp_path / "logs" / "parser.log.1").read_text() == "old words"
    data.close()


def test_too_little_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LEAST_DISK", 1 << 60)
    data = DataFolder(tmp_path)
    with pytest.raises(LocalStackError, match=r"only \d+ MiB are free for the data folder"):
        data.open()
    data.close()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(LocalStackError, match=os.strerror(errno.EEXIST)):
        DataFolder(tmp_path / "data").open()


def test_own_parts_come_from_the_environment_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "BLOB_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text("database_url=postgresql://file/x\nBLOB_URL=s3://bucket\nLOG_LEVEL=INFO\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://environment/x")
    assert own_parts() == {"DATABASE_URL": "postgresql://environment/x", "BLOB_URL": "s3://bucket"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"services": ("gateway", "paser")}, "unknown service paser: it is one of gateway, parser"),
        ({"replicas": {"parser": 0}}, "parser needs at least 1 replica, not 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(LocalStackError, match=message):
        StackOptions(**options)  # type: ignore[arg-type]  # a table of wrong arguments
