import json
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

START = timedelta(seconds=60)
"""For a Python process to start and to log; it takes half a second."""

SCRIPT = """
import logging, structlog
from shared.logs import configure_logging
from shared.settings import LogSettings

configure_logging(LogSettings(log_format={log_format!r}, log_level={level!r}), "parser")
logger = structlog.stdlib.get_logger("ours")
logger.debug("a detail")
with structlog.contextvars.bound_contextvars(task_id="t-1"):
    logger.info("record done", pages=3)
logging.getLogger("library").warning("from %s", "elsewhere")
logging.getLogger("aiokafka").info("chatter")
logging.getLogger("aiokafka.consumer").warning("trouble")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("it broke")
"""


def logged(log_format: str = "json", level: str = "INFO") -> list[str]:
    """Return what a process that logs writes to stderr; nothing goes to stdout."""
    script = SCRIPT.format(log_format=log_format, level=level)
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=START.total_seconds())
    assert ended.stdout == ""
    return ended.stderr.splitlines()


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    return [json.loads(line) for line in logged()]


def line_of(lines: list[dict[str, str]], event: str) -> dict[str, str]:
    [line] = [line for line in lines if line["event"] == event]
    return line


def test_our_lines_are_json_with_service_level_time_and_context(lines: list[dict[str, str]]) -> None:
    line = line_of(lines, "record done")
    offset = datetime.fromisoformat(line.pop("timestamp")).utcoffset()
    assert offset == timedelta(0)
    assert line == {
        "event": "record done",
        "level": "info",
        "logger": "ours",
        "service": "parser",
        "task_id": "t-1",
        "pages": 3,
    }


def test_a_librarys_lines_look_the_same(lines: list[dict[str, str]]) -> None:
    line = line_of(lines, "from elsewhere")
    assert (line["level"], line["logger"], line["service"]) == ("warning", "library", "parser")
    assert "task_id" not in line


def test_an_exception_is_one_line_with_its_stack(lines: list[dict[str, str]]) -> None:
    line = line_of(lines, "it broke")
    assert line["level"] == "error"
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_chatter_of_libraries_is_left_out_and_their_trouble_is_not(lines: list[dict[str, str]]) -> None:
    events = [line["event"] for line in lines]
    assert events == ["record done", "from elsewhere", "trouble", "it broke"]


def test_text_is_for_people() -> None:
    text = "\n".join(logged("text", "DEBUG"))
    assert "record done" in text
    assert "a detail" in text
    assert not text.startswith("{")
    assert "ZeroDivisionError" in text


def test_without_a_terminal_the_format_is_json_and_the_level_counts() -> None:
    [first, *rest] = [json.loads(line)["event"] for line in logged("auto", "WARNING")]
    assert (first, rest) == ("from elsewhere", ["trouble", "it broke"])
