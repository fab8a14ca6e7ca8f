"""A whole stack for the tests of this folder: two gateways, two parsers, one of each other service."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cli.sample import write_sample
from deploy.local import LocalStack, StackOptions
from tests.support.stack_thread import StackThread

MAX_UPLOAD_BYTES = 48 * 1024 * 1024
"""Above the largest odd PDF, and small enough to go beyond in a test."""

REPLICAS = {"gateway": 2, "parser": 2}


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    options = StackOptions(
        data=tmp_path_factory.mktemp("stack"),
        port=0,
        replicas=REPLICAS,
        env={"MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES), "SSE_HEARTBEAT": "0.2"},
    )
    with StackThread(options) as running:
        yield running.stack


@pytest.fixture
async def api(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.services["gateway"][0].url, timeout=30) as client:
        yield client


@pytest.fixture
async def other_api(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.services["gateway"][1].url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 pages of varied text."""
    path = tmp_path_factory.mktemp("generated") / "handbook.pdf"
    write_sample(path, pages=500)
    return path
