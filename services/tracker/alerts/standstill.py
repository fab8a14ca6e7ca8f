"""Remembers which stages stand still, to tell it once when that begins and once when it is over."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from services.tracker.alerts.news import MOST_NOTICES, Notice
from shared.stages import StageState


class Standstill:
    """What changes from one look at the stages to the next, until it is taken to be told."""

    def __init__(self) -> None:
        self._notices: list[Notice] = []
        self._still: set[str] = set()

    def note(self, stages: Mapping[str, StageState]) -> None:
        """Compare with what was seen last."""
        for stage, state in stages.items():
            if state.still_since and stage not in self._still:
                self._still.add(stage)
                self._notices.append(_begun(stage, state, state.still_since))
            elif not state.still_since and stage in self._still:
                self._still.discard(stage)
                self._notices.append(_over(stage, state))

    def take(self) -> Sequence[Notice]:
        """Hand out what is to be told, the oldest first."""
        notices, self._notices = self._notices, []
        return notices

    def put_back(self, notices: Sequence[Notice]) -> None:
        """Take back what nobody could be told, but for what would be too much to tell."""
        self._notices = [*notices, *self._notices][-MOST_NOTICES:]


def _begun(stage: str, state: StageState, since: datetime) -> Notice:
    work = f"{state.waiting} records wait, {state.members or 'no'} consumers"
    return Notice(
        headline=f"stage {stage} stands still",
        text=f"Stage {stage} has done nothing since {since:%Y-%m-%d %H:%M:%S} UTC: {work}",
        good=False,
    )


def _over(stage: str, state: StageState) -> Notice:
    return Notice(
        headline=f"stage {stage} moves again",
        text=f"Stage {stage} moves again: {state.waiting} records wait",
        good=True,
    )
