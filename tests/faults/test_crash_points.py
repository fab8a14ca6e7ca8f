"""Every service dies, by its own hand, at the points where a crash could lose or double something."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from shared.tasks import TaskStatus
from shared.topics import TASK_EVENTS
from tests.faults.documents import Document, good
from tests.faults.trial import Trial
from tests.support.saboteur.orders import Action, Moment, Order, Point

STAGES = ("parser", "embedder", "indexer")

DOCUMENTS = 8
"""Enough for every service to have work while one of its replicas is dead."""

MOST_HITS = 3
"""Of the hits of a point, one of the first so many is the one at which a process dies."""

FRESH_FAILURE = 3.0
"""Seconds from one document that fails to the next: above the shortest delay of a retry."""

AT_WORK = 8.0
"""Seconds that a document takes which is canceled meanwhile: a gateway is there again after 2 or 3."""


@dataclass(frozen=True)
class Spot:
    """A point in a service.

    Attributes
    ----------
    rare
        Whether few documents come by it.
    """

    service: str
    point: Point
    target: str
    rare: bool = False


OUTPUT_PUBLISH = (
    Spot("gateway", Point.PUBLISH, "documents.submitted"),
    Spot("parser", Point.PUBLISH, "pages.requested", rare=True),
    Spot("parser", Point.PUBLISH, "chunks.extracted"),
    Spot("embedder", Point.PUBLISH, "chunks.embedded"),
    Spot("indexer", Point.PUBLISH, "task.events"),
    Spot("tracker", Point.PUBLISH, "task.updates"),
    Spot("tracker", Point.PUBLISH, "documents.completed", rare=True),
)
DATABASE_COMMIT = (
    Spot("gateway", Point.DATABASE_COMMIT, "*INSERT INTO tasks *"),
    Spot("indexer", Point.DATABASE_COMMIT, "*INSERT INTO chunks *"),
    Spot("tracker", Point.DATABASE_COMMIT, "*INSERT INTO task_units *"),
)
OFFSET_COMMIT = (
    Spot("parser", Point.OFFSET_COMMIT, "documents.submitted"),
    Spot("parser", Point.OFFSET_COMMIT, "pages.requested", rare=True),
    Spot("embedder", Point.OFFSET_COMMIT, "chunks.extracted"),
    Spot("indexer", Point.OFFSET_COMMIT, "chunks.embedded"),
    Spot("tracker", Point.OFFSET_COMMIT, "task.events"),
)
RETRY_PUBLISH = tuple(Spot(service, Point.PUBLISH, "*.retry.*") for service in STAGES)
RETURN_FROM_RETRY = (
    Spot("parser", Point.PUBLISH, "documents.submitted"),
    Spot("embedder", Point.PUBLISH, "chunks.extracted"),
    Spot("indexer", Point.PUBLISH, "chunks.embedded"),
)
DEAD_LETTER_PUBLISH = tuple(Spot(service, Point.PUBLISH, "*.dlq") for service in (*STAGES, "tracker"))
CANCELLATION = (
    Spot("gateway", Point.DATABASE_COMMIT, "*status = 'canceled'*"),
    Spot("gateway", Point.PUBLISH, "task.control"),
    Spot("indexer", Point.DATABASE_COMMIT, "*DELETE FROM chunks *"),
    Spot("indexer", Point.OFFSET_COMMIT, "task.control"),
)


@pytest.fixture(params=list(Moment))
def moment(request: pytest.FixtureRequest) -> Moment:
    chosen: Moment = request.param
    return chosen


async def test_a_crash_around_an_output_or_a_commit_loses_nothing(trial: Trial, moment: Moment) -> None:
    given = [
        _crash(trial, spot, moment, nth=1 if spot.rare else trial.choice.randint(1, MOST_HITS))
        for spot in (*OUTPUT_PUBLISH, *DATABASE_COMMIT, *OFFSET_COMMIT)
    ]
    async with trial.load.running():
        singles = [_new(trial, 1) for _ in range(DOCUMENTS)]
        await trial.load.upload([_new(trial, 70), *singles, singles[0]])
        await trial.struck(given)
    await trial.verdict(f"crash {moment} output publish, database commit, offset commit", faults=len(given))


async def test_a_crash_around_a_retry_loses_nothing(trial: Trial, moment: Moment) -> None:
    given = [_crash(trial, spot, moment) for spot in (*RETRY_PUBLISH, *RETURN_FROM_RETRY)]

    async def fail_until_struck(stage: str) -> None:
        flaky = Order(point=Point.WORK, moment=Moment.BEFORE, target=f"*-flaky-{stage}.pdf", action=Action.FAIL)
        failing = trial.order(stage, replace(flaky, again=True))
        struck = asyncio.create_task(trial.struck([path for path in given if path.parent.name == stage]))
        while not struck.done():  # what failed before waits longer and longer
            await trial.load.upload([_new(trial, 1)], f"-flaky-{stage}")
            await asyncio.wait({struck}, timeout=FRESH_FAILURE)
        failing.unlink()
        await struck

    await asyncio.gather(*map(fail_until_struck, STAGES))
    await trial.verdict(f"crash {moment} retry publish, return from retry", faults=len(given))


async def test_a_crash_around_a_dead_letter_fails_the_task_once(trial: Trial, moment: Moment) -> None:
    for stage in STAGES:
        poison = Order(point=Point.WORK, moment=Moment.BEFORE, target=f"*-poison-{stage}.pdf", action=Action.REFUSE)
        trial.order(stage, replace(poison, again=True))
    given = [_crash(trial, spot, moment) for spot in DEAD_LETTER_PUBLISH]
    await _report_nonsense(trial)
    for stage in STAGES:
        refused = replace(_new(trial, 1), end=TaskStatus.FAILED, error="permanent_failure")
        await trial.load.upload([refused], f"-poison-{stage}")
    await trial.struck(given)
    await trial.verdict(f"crash {moment} dead-letter publish", faults=len(given))


async def test_a_crash_around_a_cancellation_leaves_nothing_of_the_task(trial: Trial, moment: Moment) -> None:
    given = [_crash(trial, spot, moment) for spot in CANCELLATION]

    async def cancel_at_work(stage: str) -> None:
        slow = Order(point=Point.WORK, moment=Moment.BEFORE, target=f"*-unwanted-{stage}.pdf", action=Action.LINGER)
        trial.order(stage, replace(slow, seconds=AT_WORK, again=True))
        uploads = await trial.load.upload([_new(trial, 1) for _ in range(DOCUMENTS // 2)], f"-unwanted-{stage}")
        await asyncio.gather(*map(trial.load.cancel, uploads))

    await asyncio.gather(*map(cancel_at_work, ("embedder", "indexer")))
    await trial.struck(given)
    figures = await trial.verdict(f"crash {moment} a cancellation's commits and publish", faults=len(given))
    assert figures.canceled == figures.accepted


def _crash(trial: Trial, spot: Spot, moment: Moment, nth: int = 1) -> Path:
    return trial.order(spot.service, Order(point=spot.point, moment=moment, target=spot.target, nth=nth))


def _new(trial: Trial, pages: int) -> Document:
    return good(pages, trial.choice.getrandbits(32))


async def _report_nonsense(trial: Trial) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=trial.where.kafka)
    await producer.start()
    try:
        await producer.send_and_wait(TASK_EVENTS.name, b"nonsense", key=b"nonsense")
    finally:
        await producer.stop()
