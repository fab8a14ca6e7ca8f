import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.tracker.alerts.channels import FIRST_PAUSE, LONGEST_PAUSE, TELL_WITHIN, Channel
from services.tracker.alerts.news import News
from tests.support.builders import NOON

URL = SecretStr("json://localhost/s3cret")


@pytest.fixture(autouse=True)
def no_courier(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process can be started: every message is refused, at once."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as found:
        yield found


def failures(count: int) -> News:
    return News(NOON, Counter(pdf_corrupt=count), (), ())


async def test_a_channel_that_is_away_for_long_is_asked_ever_more_rarely_but_for_ever(logs: list[EventDict]) -> None:
    channel = Channel(1, URL)
    for _ in range(100):
        assert not await channel.tell(failures(1))
        assert not channel.ready
    assert [log["again_in"] for log in logs[:3]] == [str(FIRST_PAUSE * factor) for factor in (1, 2, 4)]
    assert logs[-1]["again_in"] == str(LONGEST_PAUSE)
    assert logs[-1]["reason"] == "no courier can be started: No such file or directory"


async def test_what_it_missed_is_given_up_after_a_day(logs: list[EventDict]) -> None:
    channel = Channel(2, URL)
    channel.miss(failures(3))
    assert not await channel.tell(News(NOON + TELL_WITHIN, Counter(), (), ()))
    assert [log["event"] for log in logs] == ["alert not taken"]
    assert not await channel.tell(News(NOON + TELL_WITHIN * 2, Counter(), (), ()))
    assert logs[1:] == [
        {"event": "alert given up", "channel": "2 (json://)", "failures": 3, "notices": 0, "log_level": "warning"}
    ]
    assert "s3cret" not in str(logs)


async def test_where_there_is_no_news_nothing_is_sent(logs: list[EventDict]) -> None:
    channel = Channel(1, URL)
    assert not await channel.tell(News(NOON, Counter(), (), ()))
    assert channel.ready
    assert logs == []
