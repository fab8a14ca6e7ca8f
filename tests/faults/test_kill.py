"""kill -9 of every service, at random times, while documents come in."""

import asyncio

from deploy.local.services import SERVICES
from tests.faults.trial import Trial

BETWEEN_KILLS = (0.3, 3.0)
"""Seconds, at least and at most: some die while they start again, some with much in hand."""


async def test_services_killed_at_random_lose_nothing(trial: Trial) -> None:
    kills = 0
    async with trial.load.running():
        for _ in range(trial.scale.rounds):
            for service in trial.choice.sample(SERVICES, len(SERVICES)):
                await asyncio.sleep(trial.choice.uniform(*BETWEEN_KILLS))
                await trial.kill(trial.choice.choice(trial.stack.services[service]))
                kills += 1
    await trial.verdict("services killed at random times", faults=kills)
