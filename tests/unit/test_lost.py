from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tracker import lost
from shared.events import DocumentSubmitted, PagesRequested, Step
from shared.kafka import Outgoing
from shared.shards import shards_of
from shared.tasks import submitted
from tests.support.builders import TASK, row

Parts = Sequence[tuple[bool, bool]]
"""Of each part of a shard, whether it is embedded, and whether it is indexed."""


def unit(step: Step, shard: int = 0, part: int = 0, *, state: str = "done", parts: int | None = None) -> Any:
    """Return a row of `task_units`."""
    return {"step": step, "shard": shard, "part": part, "state": state, "parts": parts}


def request(record: Outgoing) -> PagesRequested:
    assert record.topic == "pages.requested"
    return PagesRequested.model_validate_json(record.value or b"")


@st.composite
def documents(draw: st.DrawFn) -> list[Parts | None]:
    """Draw what is done of each shard of a document; None where it is not parsed."""
    parts = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=4)
    return draw(st.lists(st.none() | parts, min_size=1, max_size=5))


@given(documents())
def test_what_is_asked_for_is_all_that_is_not_done_and_nothing_else(document: list[Parts | None]) -> None:
    pages = 64 * len(document)
    units = [unit(Step.PLAN)]
    for shard, parts in enumerate(document):
        units += [unit(Step.PARSE, shard, parts=len(parts))] if parts is not None else []
        for part, done in enumerate(parts or ()):
            units += [
                unit(step, shard, part, state="done" if so else "open")
                for step, so in zip((Step.EMBED, Step.INDEX), done, strict=True)
            ]
    asked = {r.shard: r for r in map(request, lost.everything(row(pages=pages, engine="pypdf"), units))}
    for shard, parts in enumerate(document):
        missing = None if parts is None else tuple(part for part, done in enumerate(parts) if not all(done))
        if missing == ():
            assert shard not in asked
        else:
            found = asked[shard]
            assert (found.parts, found.engine) == (missing, "pypdf")
            assert (found.first_page, found.last_page) == shards_of(pages)[shard]


@pytest.mark.parametrize("replays", [0, 3])
def test_a_document_of_which_nothing_is_known_is_asked_for_as_a_whole(replays: int) -> None:
    [record] = lost.everything(row(replays=replays), [])
    assert (record.topic, record.key) == ("documents.submitted", str(TASK).encode())
    assert DocumentSubmitted.model_validate_json(record.value or b"") == submitted(row())
    assert list(record.headers) == ([("run", b"3")] if replays else [])


def test_a_shard_of_which_nobody_noted_the_parts_is_asked_for_as_a_whole() -> None:
    [record] = lost.everything(row(pages=4), [unit(Step.PLAN), unit(Step.PARSE)])
    assert request(record).parts is None


@pytest.mark.parametrize(
    ("row_of_unit", "topic", "parts"),
    [
        (unit(Step.PLAN), "documents.submitted", None),
        (unit(Step.PARSE, 1), "pages.requested", None),
        (unit(Step.EMBED, 1, 3), "pages.requested", (3,)),
        (unit(Step.INDEX, 1, 3), "pages.requested", (3,)),
        (unit(Step.PARSE, 2), "documents.submitted", None),
    ],
)
def test_a_unit_is_asked_for_by_what_makes_it(row_of_unit: Any, topic: str, parts: tuple[int, ...] | None) -> None:
    record = lost.unit(row(pages=128), row_of_unit)
    assert record.topic == topic
    if topic == "pages.requested":
        assert (request(record).shard, request(record).parts) == (1, parts)
