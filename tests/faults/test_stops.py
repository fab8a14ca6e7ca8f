"""SIGTERM, within the grace period and beyond it, and to one replica after the other while documents come in."""

import asyncio
from dataclasses import replace

from deploy.local.services import SERVICES
from tests.faults.conftest import GRACE_PERIOD
from tests.faults.documents import good
from tests.faults.trial import Trial
from tests.support.saboteur.orders import Action, Moment, Order, Point

STAGES = ("parser", "embedder", "indexer")

FAR_BEYOND = 600.0
"""Seconds that no grace period lasts."""


async def test_work_that_ends_within_the_grace_period_is_not_done_again(trial: Trial) -> None:
    await _stopped_at_work(trial, GRACE_PERIOD.total_seconds() / 2)
    figures = await trial.verdict("stop within the grace period", faults=len(STAGES))
    assert figures.duplicated == 0


async def test_work_that_outlasts_the_grace_period_is_done_by_another(trial: Trial) -> None:
    await _stopped_at_work(trial, FAR_BEYOND)
    await trial.verdict("stop beyond the grace period", faults=len(STAGES))


async def test_a_rolling_restart_under_load_fails_nothing(trial: Trial) -> None:
    async with trial.load.running():
        for replica in (0, 1):
            await asyncio.gather(*(trial.restart(trial.stack.services[service][replica]) for service in SERVICES))
    await trial.verdict("rolling restart under load", faults=2 * len(SERVICES))


async def _stopped_at_work(trial: Trial, seconds: float) -> None:
    """Stop a replica of each stage while it works on a document for so long."""
    at_work = []
    for stage in reversed(STAGES):  # whoever waits behind a slow document is not held up on the way to its own stage
        slow = Order(point=Point.WORK, moment=Moment.BEFORE, target=f"*-slow-{stage}.pdf", action=Action.LINGER)
        given = trial.order(stage, replace(slow, seconds=seconds))
        await trial.load.upload([good(1, trial.choice.getrandbits(32))], f"-slow-{stage}")
        at_work += await trial.struck([given])
    await asyncio.gather(*(trial.restart(trial.component(pid)) for pid in at_work))
