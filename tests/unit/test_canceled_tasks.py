from uuid import uuid4

import pytest

from shared import cancellations
from shared.cancellations import Cancellations
from tests.support.builders import OTHER_TASK, TASK


async def test_a_watcher_is_told_when_its_task_is_canceled_and_not_of_others() -> None:
    canceled = Cancellations()
    with canceled.watch(TASK) as first, canceled.watch(TASK) as second, canceled.watch(OTHER_TASK) as other:
        canceled.add(TASK)
        canceled.add(TASK)
        assert (first.done(), second.done(), other.done()) == (True, True, False)
    assert TASK in canceled
    assert OTHER_TASK not in canceled


async def test_nobody_is_told_who_no_longer_watches() -> None:
    canceled = Cancellations()
    with canceled.watch(TASK) as told:
        pass
    canceled.add(TASK)
    assert not told.done()
    assert not canceled._watched


async def test_only_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "MOST_KEPT", 3)
    canceled, tasks = Cancellations(), [uuid4() for _ in range(5)]
    for task in tasks:
        canceled.add(task)
    assert [task in canceled for task in tasks] == [False, False, True, True, True]
