import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psutil
import pytest
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.gateway.tasks import Tasks
from services.tracker.alerts import announcer, channels
from services.tracker.alerts.announcer import Alerts
from services.tracker.alerts.channels import TELL_WITHIN
from services.tracker.alerts.leadership import LOCK
from services.tracker.config import TrackerSettings
from services.tracker.store import TaskStore
from shared import stages
from shared.broker import Record
from shared.clock import now
from shared.database.pool import Pool, acquire
from shared.events import Stage
from shared.settings import KafkaSettings
from shared.tasks import TaskRow
from shared.topics import CHUNKS_EMBEDDED, TOPICS
from tests.integration.conftest import StackSettings
from tests.support.eventually import before_long, eventually
from tests.support.kafka_lab import KafkaLab
from tests.support.task_events import SECOND, failed, log_of, new_task
from tests.support.webhook import READ_TIMEOUT, SECRET, Mode, Webhook

TICK = timedelta(milliseconds=100)

Configure = Callable[..., Alerts]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make seconds of what are minutes in operation."""
    monkeypatch.setattr(announcer, "LOOK_INTERVAL", TICK)
    monkeypatch.setattr(announcer, "GATHER", TICK)
    monkeypatch.setattr(channels, "MESSAGE_INTERVAL", TICK)
    monkeypatch.setattr(channels, "FIRST_PAUSE", TICK)
    monkeypatch.setattr(channels, "LONGEST_PAUSE", TICK * 2)


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as found:
        yield found


@pytest.fixture
async def webhook(nothing_left_running: None) -> AsyncIterator[Webhook]:
    async with Webhook() as webhook:
        yield webhook


@pytest.fixture
def configured(settings: StackSettings, pool: Pool) -> Configure:
    """Make alerts to some channels, on a database without tasks."""

    def configured(*urls: SecretStr, clock: Callable[[], datetime] = now) -> Alerts:
        return Alerts(
            TrackerSettings(
                kafka_bootstrap_servers=settings.kafka_bootstrap_servers,
                database_url=settings.database_url,
                blob_url=settings.blob_url,
                alert_urls=urls,
            ),
            clock,
        )

    return configured


def failure(*, filename: str = "a.pdf", reason: str = "the PDF is damaged", at: datetime | None = None) -> TaskRow:
    at = at or now()
    return replace(
        new_task(at=at),
        filename=filename,
        status="failed",
        completed_at=at,
        failed_at=at,
        error_stage="parse",
        error_code="pdf_corrupt",
        error_message=reason,
    )


async def fails(tasks: Tasks, **what: Any) -> TaskRow:
    task = failure(**what)
    await tasks.insert(task)
    return task


async def alerted(pool: Pool) -> list[bool]:
    """Tell of each failure whether it is marked."""
    async with acquire(pool) as connection:
        return [row["told"] for row in await connection.fetch("SELECT alerted_at IS NOT NULL AS told FROM tasks")]


async def nothing_unmarked(pool: Pool) -> None:
    """Wait until everything that was told is marked."""

    async def check() -> None:
        assert all(await alerted(pool))

    await eventually(check)


# --- settings; here, because the library opens a socket to find out about IPv6 ---


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/paperlane")
    monkeypatch.setenv("BLOB_URL", "file:///blobs")
    return lambda urls: monkeypatch.setenv("ALERT_URLS", urls)


def test_channels_are_separated_by_white_space_for_a_comma_may_be_part_of_one(given: Callable[[str], None]) -> None:
    mail = f"mailto://user:{SECRET}@example.com?to=ann@example.com,bob@example.com"
    given(f"{mail}\n  json://localhost/hook ")
    settings = TrackerSettings()
    assert [url.get_secret_value() for url in settings.alert_urls] == [mail, "json://localhost/hook"]
    assert SECRET not in f"{settings!r} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        (f"slack://{SECRET}/{SECRET}", "URL 2 (slack://)"),
        (f"hooks.example.com/{SECRET}", "URL 2 (no scheme)"),
        (f"nobody://{SECRET}@localhost", "URL 2 (nobody://)"),
        (f"user:{SECRET}@localhost?to=json://", "URL 2 (no scheme)"),
        (f"json://:{SECRET}", "URL 2 (json://)"),
    ],
)
def test_a_channel_that_is_none_is_named_without_its_secret(
    given: Callable[[str], None], capfd: pytest.CaptureFixture[str], url: str, named: str
) -> None:
    given(f"json://localhost/hook {url} json://localhost/{SECRET}")
    with pytest.raises(ValidationError, match=re.escape(f"{named} is none that Apprise understands")) as caught:
        TrackerSettings()
    assert SECRET not in f"{caught.value} {''.join(capfd.readouterr())}"


# --- failures ---


async def test_a_failure_is_told_once_with_its_file_and_its_reason(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    task = await fails(tasks)
    async with configured(webhook.url).running():
        message = await webhook.message()
        await nothing_unmarked(pool)
        second = await fails(tasks, filename="b.pdf")
        assert str(second.task_id) in (await webhook.message())["message"]
    assert message["title"] == "Paperlane: 1 task failed"
    assert message["message"].splitlines() == [
        "1 task failed: 1 pdf_corrupt",
        f"- a.pdf failed to parse: the PDF is damaged (task {task.task_id})",
    ]
    assert message["type"] == "failure"


async def test_five_hundred_failures_at_once_are_one_message(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    many = [new_task() for _ in range(500)]
    for task in many:
        await tasks.insert(task)
    async with configured(webhook.url).running():
        await TaskStore(pool).fold([failed(task, Stage.EMBED, 0, 0, now(), "the key is refused") for task in many])
        message = await webhook.message()
        await nothing_unmarked(pool)
    assert message["title"] == "Paperlane: 500 tasks failed"
    lines = message["message"].splitlines()
    assert (lines[0], lines[-1]) == ("500 tasks failed: 500 permanent_failure", "and 490 more")
    assert len(lines) == 12
    assert webhook.taken_nothing_more()


async def test_a_hostile_file_name_and_reason_are_one_short_harmless_line(
    tasks: Tasks, webhook: Webhook, configured: Configure
) -> None:
    await fails(tasks, filename="a\r\n\u202e@everyone [x](http://evil)" * 100, reason="<img src=x>\n" * 1000)
    async with configured(webhook.url).running():
        message = await webhook.message()
    assert len(message["message"].splitlines()) == 2
    assert len(message["message"]) < 500
    assert not {"@everyone", "](", "\u202e"} & {
        part for part in ("@everyone", "](", "\u202e") if part in message["message"]
    }
    assert "<img src=x>" in message["message"]  # as text: what a channel shows as HTML is escaped for it


async def test_a_task_that_fails_again_while_its_first_failure_is_being_told_is_told_again(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    task = await fails(tasks)
    webhook.mode = Mode.HOLD
    async with configured(webhook.url).running():
        assert "failed to parse" in (await webhook.message())["message"]
        assert await tasks.reopen(task.owner, task.task_id, now()) is not None
        await TaskStore(pool).fold([failed(task, Stage.INDEX, 0, 0, now(), "again").model_copy(update={"run": 1})])
        webhook.mode = Mode.TAKE
        webhook.released.set()
        assert "failed to index: again" in (await webhook.message())["message"]
        await nothing_unmarked(pool)
    assert webhook.taken_nothing_more()


async def test_failures_of_more_than_a_day_ago_are_marked_and_not_told(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure, logs: list[EventDict]
) -> None:
    for _ in range(3):
        await fails(tasks, at=now() - TELL_WITHIN - timedelta(minutes=1))
    young = await fails(tasks, at=now() - TELL_WITHIN + timedelta(minutes=1))
    async with configured(webhook.url).running():
        message = await webhook.message()
        await nothing_unmarked(pool)
    assert message["title"] == "Paperlane: 1 task failed"
    assert str(young.task_id) in message["message"]
    assert {"event": "failures too old to be told", "tasks": 3, "log_level": "warning"} in logs


async def test_without_channels_nothing_is_done(tasks: Tasks, pool: Pool, configured: Configure) -> None:
    await fails(tasks)
    async with configured().running():
        assert len(asyncio.all_tasks()) == 1
    assert await alerted(pool) == [False]


# --- channels that do not work ---


@asynccontextmanager
async def refuses(webhook: Webhook) -> AsyncIterator[None]:
    """Answer with status 500."""
    webhook.mode = Mode.REFUSE
    yield
    webhook.mode = Mode.TAKE


@asynccontextmanager
async def hangs(webhook: Webhook) -> AsyncIterator[None]:
    """Take a message and never answer."""
    webhook.mode = Mode.HANG
    yield
    webhook.mode = Mode.TAKE


@asynccontextmanager
async def is_away(webhook: Webhook) -> AsyncIterator[None]:
    """Refuse connections."""
    await webhook.close()
    yield
    await webhook.open()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (refuses, "it answers with status 500"),
        (hangs, "it refuses the message or cannot be reached"),
        (is_away, "it refuses the message or cannot be reached"),
    ],
)
async def test_a_broken_channel_holds_up_no_task_and_gets_the_message_once_it_is_back(
    broken: Callable[[Webhook], Any],
    reason: str,
    tasks: Tasks,
    pool: Pool,
    webhook: Webhook,
    configured: Configure,
    logs: list[EventDict],
) -> None:
    def refused() -> list[EventDict]:
        return [log for log in logs if log["event"] == "alert not taken"]

    async def refused_again() -> None:
        assert len(refused()) > 1

    working = new_task()
    await tasks.insert(working)
    async with AsyncExitStack() as running:
        async with broken(webhook):
            await running.enter_async_context(configured(webhook.url_with(2 * SECOND)).running())
            first = await fails(tasks)
            if webhook.mode is Mode.HANG:
                await webhook.tried(Mode.HANG)
            folded = await before_long(TaskStore(pool).fold(log_of(working, [(1, 1)])))
            assert [task.status for task in folded.ended] == ["completed"]
            await eventually(refused_again)
            second = await fails(tasks, filename="b.pdf")
        message = await webhook.message()
    assert message["title"] == "Paperlane: 2 tasks failed"
    assert [line.split()[-1] for line in message["message"].splitlines()[1:]] == [
        f"{task.task_id})" for task in (first, second)
    ]
    assert webhook.taken_nothing_more()
    assert {log["reason"] for log in refused()} == {reason}
    assert {log["channel"] for log in refused()} == {"1 (json://)"}
    assert SECRET not in str(logs)


async def test_a_channel_that_trickles_is_given_up_in_time(
    tasks: Tasks, webhook: Webhook, configured: Configure, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def given_up() -> None:
        assert "it has not answered within 3 s" in {log.get("reason") for log in logs}

    monkeypatch.setattr(channels, "SEND_TIMEOUT", timedelta(seconds=3))
    webhook.mode = Mode.TRICKLE
    await fails(tasks)
    async with configured(webhook.url).running():
        await webhook.tried(Mode.TRICKLE)
        await eventually(given_up)
        monkeypatch.undo()
        webhook.mode = Mode.TAKE
        assert (await webhook.message())["title"] == "Paperlane: 1 task failed"


async def test_a_stop_waits_for_no_channel_and_leaves_no_process(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    def couriers() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if "services.tracker.alerts.courier" in child.cmdline()]

    webhook.mode = Mode.HANG
    await fails(tasks)
    async with AsyncExitStack() as running:
        await running.enter_async_context(configured(webhook.url).running())
        await webhook.tried(Mode.HANG)
        assert len(couriers()) == 1
        await before_long(running.aclose(), within=READ_TIMEOUT / 4)
    assert couriers() == []
    assert await alerted(pool) == [False]


async def test_what_one_channel_missed_is_told_to_it_alone_once_it_is_back(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    async with Webhook() as broken:
        broken.mode = Mode.REFUSE
        async with configured(broken.url, webhook.url).running():
            for name in ("a.pdf", "b.pdf"):
                await fails(tasks, filename=name)
                assert (await webhook.message())["title"] == "Paperlane: 1 task failed"
                await nothing_unmarked(pool)
            broken.mode = Mode.TAKE
            late = await broken.message()
            await fails(tasks, filename="c.pdf")
            for channel in (broken, webhook):
                assert "- c.pdf failed" in (await channel.message())["message"]
        assert broken.taken_nothing_more()
    assert late["title"] == "Paperlane: 2 tasks failed"
    assert [line.split()[1] for line in late["message"].splitlines()[1:]] == ["a.pdf", "b.pdf"]
    assert webhook.taken_nothing_more()


# --- several trackers ---


async def leads(alerts: Alerts) -> None:
    assert alerts._leadership.held


async def cut(pool: Pool) -> None:
    """Cut the connection of the tracker that leads."""
    async with acquire(pool) as connection:
        terminate = "SELECT pg_terminate_backend(pid, 20000) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1"
        assert await connection.fetchval(terminate, LOCK)


async def test_of_two_trackers_one_tells_and_the_other_takes_over(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    leader, other = configured(webhook.url), configured(webhook.url)
    async with AsyncExitStack() as running:
        await running.enter_async_context(leader.running())
        await eventually(partial(leads, leader))
        async with other.running():
            for name in ("a.pdf", "b.pdf"):
                await fails(tasks, filename=name)
                assert f"- {name} failed" in (await webhook.message())["message"]
                await nothing_unmarked(pool)
            assert leader._leadership.held
            await running.aclose()
            await fails(tasks, filename="c.pdf")
            assert "- c.pdf failed" in (await webhook.message())["message"]
            await leads(other)
    assert webhook.taken_nothing_more()


async def test_what_was_told_while_the_database_was_away_is_marked_later_and_not_told_again(
    tasks: Tasks, pool: Pool, webhook: Webhook, configured: Configure
) -> None:
    webhook.mode = Mode.HOLD
    async with configured(webhook.url).running():
        await fails(tasks, filename="a.pdf")
        await webhook.message()
        await cut(pool)
        webhook.mode = Mode.TAKE
        webhook.released.set()
        await nothing_unmarked(pool)
        await fails(tasks, filename="b.pdf")
        assert "- b.pdf failed" in (await webhook.message())["message"]
    assert webhook.taken_nothing_more()


# --- stages ---


async def ignore(records: tuple[Record, ...]) -> None:
    """Take records as a stage would that has nothing to do."""


@pytest.fixture
async def idle_stages(lab: KafkaLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that have worked off everything and have no members; a moment without any counts as long."""
    for topic in TOPICS:
        if topic.group:
            await lab.catch_up(topic)
    monkeypatch.setattr(announcer, "STAGES_INTERVAL", TICK)
    monkeypatch.setattr(stages, "FRESH", TICK)
    monkeypatch.setattr(stages, "UNATTENDED_AFTER", TICK * 5)


async def test_a_stage_with_work_and_without_consumers_is_told_and_so_is_that_it_moves_again(
    lab: KafkaLab, idle_stages: None, tasks: Tasks, webhook: Webhook, configured: Configure
) -> None:
    async with configured(webhook.url).running():
        for n in range(3):
            await lab.send(CHUNKS_EMBEDDED.name, b"{}", partition=n)
        begun = await webhook.message()
        async with lab.consuming(CHUNKS_EMBEDDED, ignore):
            over = await webhook.message()
        await fails(tasks)
        assert (await webhook.message())["title"] == "Paperlane: 1 task failed"
    assert (begun["title"], begun["type"]) == ("Paperlane: stage index stands still", "failure")
    assert begun["message"].startswith("Stage index has done nothing since 20")
    assert begun["message"].endswith(" UTC: 3 records wait, no consumers")
    assert (over["title"], over["type"]) == ("Paperlane: stage index moves again", "success")
    assert re.fullmatch("Stage index moves again: [012] records wait", over["message"])
    assert webhook.taken_nothing_more()


async def test_a_broker_that_is_away_keeps_no_failure_from_being_told(
    tasks: Tasks, webhook: Webhook, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "STAGES_INTERVAL", TICK)
    away = configured(webhook.url)
    away._watch._settings = KafkaSettings(kafka_bootstrap_servers="127.0.0.1:9")
    async with away.running():
        await fails(tasks)
        assert (await webhook.message())["title"] == "Paperlane: 1 task failed"
