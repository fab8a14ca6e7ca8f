"""Servers that hang, stop and die, while documents come in: each is accepted or clearly refused, and none is lost."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from shared.database.pool import acquire
from tests.faults.documents import good
from tests.faults.ledger import Answer
from tests.faults.trial import Trial
from tests.support.saboteur.orders import Action, Moment, Order, Point

WAITING = 20
"""Documents that wait to be read when the blob store goes away."""

CALM = timedelta(seconds=2)
"""Between two outages: enough for the first work to be done again, too short for all of it."""


async def test_uploads_are_accepted_while_the_broker_is_away(trial: Trial) -> None:
    kafka = trial.stack.servers["kafka"]
    async with trial.load.running():
        with trial.thread.frozen("kafka"):
            await _accepts_all(trial)
        await _pass(CALM)
        async with trial.stopped(kafka):
            await _accepts_all(trial)
        await _pass(CALM)
        await trial.kill(kafka)
        await trial.ready([kafka])
    await trial.verdict("broker frozen, stopped and killed", faults=3)


async def test_uploads_are_refused_while_the_database_is_away(trial: Trial) -> None:
    postgres = trial.stack.servers["postgres"]
    async with trial.load.running():
        with trial.thread.frozen("postgres"):
            await _pass(trial.scale.outage)
        await _pass(CALM)
        async with trial.stopped(postgres):
            await _refuses_all(trial)
        await _pass(CALM)
        await trial.kill(postgres)
        await trial.ready([postgres])
    await trial.verdict("database frozen, stopped and killed", faults=3)


async def test_an_upload_is_whole_whose_commit_nobody_heard_of(trial: Trial) -> None:
    lost = Order(point=Point.DATABASE_COMMIT, moment=Moment.AFTER, target="*INSERT INTO tasks *", action=Action.FAIL)
    given = trial.order("gateway", lost)
    [upload] = await trial.load.upload([good(1, trial.choice.getrandbits(32))])
    await trial.struck([given])
    figures = await trial.verdict("database lost once it has committed an upload", faults=1)
    assert (figures.accepted, figures.refused, figures.completed) == (1, 1, 2), upload


async def test_uploads_are_refused_while_the_blob_store_is_away(trial: Trial) -> None:
    async with trial.load.running():
        await trial.load.upload([good(3, trial.choice.getrandbits(32)) for _ in range(WAITING)])
        with _unusable(trial.where.blobs):
            await _refuses_all(trial)
    await trial.verdict("blob store unreachable", faults=1)


async def test_uploads_are_accepted_while_the_vector_store_is_away(trial: Trial) -> None:
    async with trial.load.running():
        await _pass(CALM)
        async with acquire(trial.pool) as connection, connection.transaction():
            await connection.execute("LOCK TABLE chunks IN ACCESS EXCLUSIVE MODE")
            await _accepts_all(trial)
        await _pass(CALM)
        async with acquire(trial.pool) as connection:
            await connection.execute("ALTER TABLE chunks RENAME TO chunks_away")
            try:
                await _accepts_all(trial)
            finally:
                await connection.execute("ALTER TABLE chunks_away RENAME TO chunks")
    await trial.verdict("vector store hanging, then unreachable", faults=2)


async def _accepts_all(trial: Trial) -> None:
    answers = await _answers(trial)
    assert answers
    assert set(answers) == {Answer.ACCEPTED}


async def _refuses_all(trial: Trial) -> None:
    answers = await _answers(trial)
    assert answers
    assert set(answers) == {Answer.REFUSED}


async def _answers(trial: Trial) -> list[Answer]:
    """Return the answers to uploads that begin and end within an outage."""
    before = len(trial.ledger.uploads)
    await _pass(trial.scale.outage)
    return [upload.answer for upload in trial.ledger.uploads[before:] if upload.answer is not None]


async def _pass(time: timedelta) -> None:
    await asyncio.sleep(time.total_seconds())


@contextmanager
def _unusable(folder: Path) -> Iterator[None]:
    """Have a file where the folder should be, which stops even root."""
    away = folder.with_suffix(".away")
    folder.rename(away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)
