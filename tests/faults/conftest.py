"""One stack for all scenarios: two of each service, each with a saboteur inside, and short deadlines."""

import json
import os
import random
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.local import StackOptions
from deploy.local.services import SERVICES
from tests.faults.ledger import Ledger
from tests.faults.trial import LONG, SHORT, Trial
from tests.support.saboteur.orders import FOLDER
from tests.support.stack_thread import StackThread

LIMIT = 1800 if os.environ.get("PAPERLANE_FAULTS") == "long" else 240
"""Seconds of one test."""

GRACE_PERIOD = timedelta(seconds=3)
"""Long enough to end work, short enough to wait for its end."""

SSE_SEND_TIMEOUT = timedelta(seconds=4)
"""Far above what a busy machine holds up a client that reads, and short enough to wait for."""

ENVIRONMENT = {
    "RETRY_DELAYS": "1,2,4,8,16,32",  # together longer than the longest outage
    "GRACE_PERIOD": f"{GRACE_PERIOD.total_seconds():g}",
    "SSE_HEARTBEAT": "1",
    "SSE_SEND_TIMEOUT": f"{SSE_SEND_TIMEOUT.total_seconds():g}",
}
"""TASK_TIMEOUT stays long: a record that is lost must be seen, not healed by the watchdog."""

reports = pytest.StashKey[list[dict[str, Any]]]()
seed_key = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[seed_key] = int(os.environ.get("PAPERLANE_SEED") or secrets.randbelow(10**6))
    config.stash[reports] = []


def pytest_report_header(config: pytest.Config) -> str:
    return f"PAPERLANE_SEED={config.stash[seed_key]}"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))


def pytest_sessionfinish(session: pytest.Session) -> None:
    name = os.environ.get("PAPERLANE_FAULTS_REPORT")
    if name:
        found = {"seed": session.config.stash[seed_key], "scenarios": session.config.stash[reports]}
        Path(name).write_text(json.dumps(found, indent=1) + "\n")


def command(service: str, port: int) -> Sequence[str]:
    return sys.executable, "-P", "-m", "tests.support.saboteur", service, str(port)


@pytest.fixture(scope="session")
def sabotage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sabotage")


@pytest.fixture(scope="session")
def thread(tmp_path_factory: pytest.TempPathFactory, sabotage: Path) -> Iterator[StackThread]:
    options = StackOptions(
        data=tmp_path_factory.mktemp("stack"),
        port=0,
        replicas=dict.fromkeys(SERVICES, 2),
        env=ENVIRONMENT | {FOLDER: str(sabotage), "TMPDIR": str(tmp_path_factory.mktemp("tmp"))},
        command=command,
    )
    with StackThread(options) as running:
        yield running


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def trial(
    request: pytest.FixtureRequest, thread: StackThread, sabotage: Path, ledger: Ledger
) -> AsyncIterator[Trial]:
    seed, stash = request.config.stash[seed_key], request.config.stash
    request.node.add_report_section("setup", "seed", f"PAPERLANE_SEED={seed}")
    choice = random.Random(f"{seed}/{request.node.name}")
    scale = LONG if os.environ.get("PAPERLANE_FAULTS") == "long" else SHORT
    name = request.node.name.removeprefix("test_").translate(str.maketrans("[] /", "    ")).replace(" ", "-")
    async with Trial(thread, sabotage, ledger, stash[reports], choice, name, scale) as trial:
        yield trial
