from collections import Counter
from collections.abc import Sequence
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tracker.alerts.news import MOST_CODES, MOST_NOTICES, SAMPLES, Failure, News, Notice, compose, harmless
from services.tracker.alerts.standstill import Standstill
from shared.stages import StageState
from tests.support.builders import NOON, TASK, after

BEGUN = Notice("stage embed stands still", "Stage embed has done nothing since noon", good=False)
OVER = Notice("stage embed moves again", "Stage embed moves again", good=True)


def news(codes: dict[str, int] | None = None, notices: Sequence[Notice] = (), *, name: str = "a.pdf") -> News:
    counts = Counter(codes or {})
    named = min(counts.total(), SAMPLES)
    samples = [Failure(uuid4(), f"{n}-{name}", "failed to parse: no use") for n in range(named)]
    return News(NOON, counts, samples, notices)


def test_one_failure_is_told_with_its_task() -> None:
    message = compose([News(NOON, Counter(pdf_corrupt=1), [Failure(TASK, "a.pdf", "failed to parse: damaged")], ())])
    assert message.title == "Paperlane: 1 task failed"
    assert message.body == f"1 task failed: 1 pdf_corrupt\n- a.pdf failed to parse: damaged (task {TASK})"
    assert not message.good


def test_failures_are_counted_by_code_the_most_frequent_first_and_ten_are_named() -> None:
    message = compose([news({"rate_limited": 4, "pdf_corrupt": 30}), news({"rate_limited": 2}, name="b.pdf")])
    lines = message.body.splitlines()
    assert message.title == "Paperlane: 36 tasks failed"
    assert lines[0] == "36 tasks failed: 30 pdf_corrupt, 6 rate_limited"
    assert [line.split()[1] for line in lines[1:-1]] == [f"{n}-a.pdf" for n in range(10)]
    assert lines[-1] == "and 26 more"


def test_codes_without_end_are_counted_together() -> None:
    body = compose([news({f"code_{n}": 1 for n in range(MOST_CODES + 5)})]).body
    assert body.splitlines()[0].endswith("1 code_9, 5 of other codes")


def test_stages_come_first_and_nothing_but_good_news_is_good() -> None:
    message = compose([news({"pdf_corrupt": 1}, [BEGUN]), news(notices=[OVER])])
    assert message.title == "Paperlane: 1 task failed, stage embed stands still, stage embed moves again"
    assert message.body.splitlines()[:4] == [BEGUN.text, OVER.text, "", "1 task failed: 1 pdf_corrupt"]
    assert not message.good
    assert not compose([news(notices=[BEGUN, OVER])]).good
    assert compose([news(notices=[OVER])]).good


def test_of_very_many_notices_the_latest_are_told() -> None:
    many = [Notice("stage embed stands still", f"notice {n}", good=False) for n in range(MOST_NOTICES + 3)]
    message = compose([news(notices=[notice]) for notice in many])
    assert message.body.splitlines() == [f"notice {n}" for n in range(3, MOST_NOTICES + 3)]
    assert message.title == "Paperlane: stage embed stands still"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("  a\r\n\tb \0 c  ", "a b c"),
        ("fdp\u202egnp.exe", "fdp gnp.exe"),
        ("@everyone", "@\u2060everyone"),
        ("[log in](http://evil)", "[log in] (http://evil)"),
        ("日本語 مرحبا é", "日本語 مرحبا é"),
        ("x" * 23, "x" * 21 + "…"),
    ],
)
def test_a_foreign_text_is_one_line_that_nobody_obeys(text: str, shown: str) -> None:
    assert harmless(text, 22) == shown


@given(st.text(max_size=300), st.text(max_size=300))
def test_whatever_a_document_is_called_a_message_has_its_lines_and_no_more(filename: str, reason: str) -> None:
    failures = [Failure(TASK, filename, reason)] * SAMPLES
    body = compose([News(NOON, Counter(internal_error=SAMPLES), failures, ())]).body
    assert len(body.splitlines()) == 1 + SAMPLES
    assert len(body) < 5000


# --- stages that stand still ---

MOVES = StageState(members=2, waiting=0)
STILL = StageState(members=0, waiting=7, still_since=NOON)


def test_a_standstill_is_told_once_when_it_begins_and_once_when_it_is_over() -> None:
    standstill = Standstill()
    told: list[list[str]] = []
    for state in (MOVES, STILL, STILL, MOVES, MOVES, STILL):
        standstill.note({"embed": state, "index": MOVES})
        told.append([notice.text for notice in standstill.take()])
    begun = "Stage embed has done nothing since 2026-03-01 12:00:00 UTC: 7 records wait, no consumers"
    assert told == [[], [begun], [], ["Stage embed moves again: 0 records wait"], [], [begun]]


def test_what_could_not_be_told_waits_in_order_and_not_without_end() -> None:
    standstill = Standstill()
    standstill.note({"embed": STILL})
    first = standstill.take()
    standstill.note({"embed": MOVES})
    standstill.put_back(first)
    assert [notice.headline for notice in standstill.take()] == ["stage embed stands still", "stage embed moves again"]
    for n in range(MOST_NOTICES):
        standstill.note({"embed": StageState(members=1, waiting=1, still_since=after(n)), "index": MOVES})
        standstill.note({"embed": MOVES})
        standstill.put_back(standstill.take())
    assert len(standstill.take()) == MOST_NOTICES
