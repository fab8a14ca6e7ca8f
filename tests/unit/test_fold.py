from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.tracker.fold import Unit, UnitState, apply, await_retry, settle, step_of, unit_of
from services.tracker.store import _prevails
from shared.events import (
    PAGE_WEIGHT,
    DeadLetter,
    DocumentPlanned,
    PartEmbedded,
    PartIndexed,
    ShardExtracted,
    Stage,
    Step,
    TaskEvent,
    UnitFailed,
    UnitRetryScheduled,
    part_weight,
)
from shared.tasks import TaskRow, TaskStatus
from tests.support.builders import (
    NOON,
    after,
    part_embedded,
    part_indexed,
    planned,
    retry_scheduled,
    row,
    shard_extracted,
    unit_failed,
)

COLUMNS = [field.name for field in fields(TaskRow) if field.name not in {"version", "updated_at"}]

Batches = Sequence[Sequence[TaskEvent]]


class Ledger:
    """Counts every unit and every retry once, and knows which retry is due next, as the store does."""

    def __init__(self) -> None:
        self._units: dict[tuple[Step, int, int], Unit] = {}
        self._retries: dict[tuple[Step, int, int, int], UnitRetryScheduled] = {}

    def uncounted(self, batch: Iterable[TaskEvent]) -> list[TaskEvent]:
        return [event for event in batch if self._counts(event)]

    def _counts(self, event: TaskEvent) -> bool:
        if isinstance(event, UnitRetryScheduled):
            attempt = (step_of(event), event.shard, event.part, event.attempt)
            is_new = attempt not in self._retries
            self._retries[attempt] = event
            return is_new
        unit = unit_of(event)
        known = self._units.get(key := (unit.step, unit.shard, unit.part))
        if known is not None and not _prevails(unit, known):
            return False
        self._units[key] = unit
        return True

    def next_retry(self) -> UnitRetryScheduled | None:
        last = {key[:3]: retry for key, retry in sorted(self._retries.items())}
        pending = {key: retry for key, retry in last.items() if key not in self._units}
        return min(pending.items(), key=lambda item: (item[1].retry_at, item[0]), default=(None, None))[1]


def fold(batches: Batches, task: TaskRow | None = None) -> list[TaskRow]:
    """Return the task's row after every batch, the last one last; the first is the untouched task."""
    ledger, states = Ledger(), [task or row()]
    for batch in batches:
        state = replace(states[-1])
        for event in ledger.uncounted(batch):
            apply(state, event)
        settle(state)
        await_retry(state, ledger.next_retry())
        states.append(state)
    return states


def folded(*events: TaskEvent) -> TaskRow:
    return fold([[event] for event in events])[-1]


def columns(task: TaskRow) -> dict[str, object]:
    return {name: getattr(task, name) for name in COLUMNS}


times = st.integers(0, 50).map(after)
"""Few different ones, so that ties happen."""


@st.composite
def spans(draw: st.DrawFn) -> dict[str, datetime]:
    first, last = sorted((draw(times), draw(times)))
    return {"started_at": first, "finished_at": last}


@dataclass(frozen=True)
class Log:
    """What happened to a task: how each unit ended, if it did, and the retries before that."""

    events: list[TaskEvent]
    end: TaskStatus


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Draw the log of a document: plan, shards of none to three parts, and units that fail, are retried, or wait."""
    fails = draw(st.sampled_from([0.0, 0.0, 0.2, 0.8]))
    unlucky = st.floats(0, 1, exclude_max=True).map(lambda luck: luck < fails)
    shards = draw(st.lists(st.tuples(st.integers(1, 7), st.integers(0, 3)), min_size=1, max_size=4))
    pages = sum(pages for pages, _ in shards)
    plan = planned(pages=pages, shards=len(shards), **draw(spans()))
    events, over = draw(reports(plan, unlucky))
    for shard, (its_pages, parts) in enumerate(shards if over else []):
        extraction, extracted = draw(reports(draw(shard_report(shard, its_pages, parts)), unlucky))
        events += extraction
        over = over and extracted
        for part in range(parts if extracted else 0):
            weight = part_weight(its_pages, parts, part)
            tokens = draw(st.integers(0, 100))
            done = part_embedded(shard=shard, part=part, weight=weight, tokens=tokens, **draw(spans()))
            embedding, embedded = draw(reports(done, unlucky))
            indexing, indexed = draw(
                reports(part_indexed(shard=shard, part=part, weight=weight, **draw(spans())), unlucky)
            )
            events += embedding + (indexing if embedded else [])
            over = over and embedded and indexed
    failed = any(isinstance(event, UnitFailed) for event in events)
    return Log(events, TaskStatus.FAILED if failed else TaskStatus.COMPLETED if over else TaskStatus.RUNNING)


@st.composite
def reports(
    draw: st.DrawFn,
    done: DocumentPlanned | ShardExtracted | PartEmbedded | PartIndexed,
    unlucky: st.SearchStrategy[bool],
) -> tuple[list[TaskEvent], bool]:
    """Draw what is reported of a unit, in any case something: its retries, then success or failure, if it has ended."""
    unit = unit_of(done)
    where = {"step": unit.step, "stage": unit.step.stage, "shard": unit.shard, "part": unit.part}
    attempts = draw(st.integers(1, 3)) if draw(unlucky) else 0
    retries: list[TaskEvent] = [
        retry_scheduled(**where, attempt=n + 1, failed_at=draw(times), retry_at=draw(times)) for n in range(attempts)
    ]
    if draw(unlucky):
        code, message = draw(st.sampled_from(["a", "b"])), draw(st.sampled_from(["one", "two"]))
        return [*retries, unit_failed(**where, code=code, message=message, failed_at=draw(times))], False
    if draw(unlucky) and retries:
        return retries, False
    return [*retries, done], True


@st.composite
def shard_report(draw: st.DrawFn, shard: int, pages: int, parts: int) -> ShardExtracted:
    without_text = draw(st.integers(0, pages - 1)) if parts else pages
    counts = {"characters": 100 * parts, "chunks": 10 * parts, "parts": parts}
    return shard_extracted(shard=shard, pages=pages, pages_without_text=without_text, **counts, **draw(spans()))


@st.composite
def deliveries(draw: st.DrawFn, events: Sequence[TaskEvent]) -> Batches:
    """Deliver events in any order, some of them more than once, in batches of any size."""
    again = draw(st.lists(st.sampled_from(events), max_size=len(events)))
    order = draw(st.permutations([*events, *again]))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=len(order))))
    return [order[start:end] for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]


@st.composite
def delivered_logs(draw: st.DrawFn) -> tuple[Log, Batches]:
    log = draw(logs())
    return log, draw(deliveries(log.events))


@given(delivered_logs())
def test_any_order_with_any_duplicates_in_any_batches_ends_in_the_same_row(case: tuple[Log, Batches]) -> None:
    log, batches = case
    assert columns(fold(batches)[-1]) == columns(fold([log.events])[-1])


@given(delivered_logs())
def test_progress_never_goes_back_and_reaches_100_only_with_completion(case: tuple[Log, Batches]) -> None:
    states = fold(case[1])
    percents = [state.progress for state in states]
    assert percents == sorted(percents)
    assert percents[0] == 0
    for state in states:
        assert (state.progress == 100) == (state.status == TaskStatus.COMPLETED)


@given(delivered_logs())
def test_a_task_is_completed_from_the_moment_when_everything_is_reported(case: tuple[Log, Batches]) -> None:
    log, batches = case
    for count, state in enumerate(fold(batches)[1:], 1):
        seen = list(chain.from_iterable(batches[:count]))
        work = [event for event in log.events if not isinstance(event, UnitRetryScheduled)]
        everything = log.end == TaskStatus.COMPLETED and all(event in seen for event in work)
        assert (state.status == TaskStatus.COMPLETED) == everything


@given(delivered_logs())
def test_a_task_ends_once_and_as_what_its_log_says(case: tuple[Log, Batches]) -> None:
    log, batches = case
    states = fold(batches)
    assert states[-1].status == log.end
    assert {state.status for state in states if state.final} == {log.end} - {TaskStatus.RUNNING}


@given(delivered_logs())
def test_the_earliest_failure_is_the_reason_whatever_the_order(case: tuple[Log, Batches]) -> None:
    log, batches = case
    failures = [event for event in log.events if isinstance(event, UnitFailed)]
    end = fold(batches)[-1]
    reason = (end.failed_at, end.error_stage, end.error_code, end.error_message)
    if failures:
        assert reason == min((event.failed_at, event.stage, event.code, event.message) for event in failures)
        assert end.completed_at == end.failed_at
    else:
        assert reason == (None, None, None, None)


@given(delivered_logs())
def test_the_row_adds_up_what_the_units_report(case: tuple[Log, Batches]) -> None:
    log, batches = case
    end = fold(batches)[-1]
    shards = [event for event in log.events if isinstance(event, ShardExtracted)]
    embeds = [event for event in log.events if isinstance(event, PartEmbedded)]
    indexes = [event for event in log.events if isinstance(event, PartIndexed)]
    assert (end.parse_done, end.embed_done, end.index_done) == (len(shards), len(embeds), len(indexes))
    assert end.parts == sum(event.parts for event in shards)
    assert end.chunks == sum(event.chunks for event in shards)
    assert end.characters == sum(event.characters for event in shards)
    assert end.pages_without_text == sum(event.pages_without_text for event in shards)
    assert end.tokens == sum(event.tokens for event in embeds)


@given(delivered_logs())
def test_times_are_the_earliest_start_and_the_latest_end(case: tuple[Log, Batches]) -> None:
    log, batches = case
    end = fold(batches)[-1]
    starts = [event.started_at for event in log.events if not isinstance(event, UnitFailed | UnitRetryScheduled)]
    parsed = [event.finished_at for event in log.events if isinstance(event, ShardExtracted)]
    indexed = [event.finished_at for event in log.events if isinstance(event, PartIndexed)]
    assert end.started_at == min(starts, default=None)
    assert end.parse_finished_at == max(parsed, default=None)
    assert end.index_finished_at == max(indexed, default=None)
    if log.end == TaskStatus.COMPLETED:
        embedded = [event.finished_at for event in log.events if isinstance(event, PartEmbedded)]
        assert end.completed_at == max(parsed + embedded + indexed)


@given(logs().filter(lambda log: log.end == TaskStatus.COMPLETED))
def test_the_weights_of_a_completed_task_are_those_of_its_pages_in_every_stage(log: Log) -> None:
    end = fold([log.events])[-1]
    assert end.pages is not None
    assert {end.parse_weight, end.embed_weight, end.index_weight} == {end.pages * PAGE_WEIGHT}


@given(st.integers(1, 100_000), st.integers(1, 5_000))
def test_the_weights_of_a_shards_parts_sum_up_exactly_to_its_pages(pages: int, parts: int) -> None:
    weights = [part_weight(pages, parts, part) for part in range(parts)]
    assert sum(weights) == pages * PAGE_WEIGHT
    assert max(weights) - min(weights) <= 1


def test_a_second_run_of_a_unit_counts_for_nothing_though_its_report_differs() -> None:
    first: list[TaskEvent] = [planned(), shard_extracted(), part_embedded()]
    again: list[TaskEvent] = [
        shard_extracted(started_at=after(50), finished_at=after(60), chunks=9),
        part_embedded(started_at=after(50), finished_at=after(60), tokens=7),
    ]
    assert columns(folded(*first, *again)) == columns(folded(*first))


def test_a_document_without_text_is_completed_once_it_is_parsed() -> None:
    end = folded(planned(pages=4), shard_extracted(pages=4, pages_without_text=4, parts=0, chunks=0))
    assert (end.status, end.progress, end.completed_at) == (TaskStatus.COMPLETED, 100, after(2))


def test_a_shard_without_text_is_done_in_every_stage_at_once() -> None:
    end = folded(planned(pages=8, shards=2), shard_extracted(pages=4, parts=0))
    assert end.progress == 50


@pytest.mark.parametrize(
    ("events", "percent"),
    [
        ([planned()], 0),
        ([planned(), shard_extracted()], 33),
        ([planned(), shard_extracted(), part_embedded()], 66),
        ([shard_extracted(), part_embedded(), part_indexed()], 0),
        ([planned(), shard_extracted(), part_embedded(), part_indexed()], 100),
    ],
)
def test_each_stage_brings_its_third_once_the_plan_is_known(events: list[TaskEvent], percent: int) -> None:
    assert folded(*events).progress == percent


def test_progress_of_a_task_that_is_not_over_stops_at_99() -> None:
    waiting = replace(folded(planned(), shard_extracted(parts=2)), embed_weight=4000, index_weight=4000)
    assert (waiting.status, waiting.progress) == (TaskStatus.RUNNING, 99)


def test_the_first_event_starts_the_task() -> None:
    end = folded(planned(started_at=after(5)))
    assert (end.status, end.started_at, end.parse_started_at) == (TaskStatus.RUNNING, after(5), after(5))


def test_a_failure_before_the_plan_fails_the_task_without_a_page_count() -> None:
    end = folded(unit_failed(stage=Stage.PARSE, code="pdf_encrypted", message="a password is needed"))
    assert (end.status, end.pages, end.progress) == (TaskStatus.FAILED, None, 0)
    assert end.message(NOON) == "failed to parse: a password is needed"


def test_a_failed_task_keeps_counting_what_gets_done_but_stays_failed() -> None:
    start: list[TaskEvent] = [planned(shards=2), shard_extracted(), unit_failed(shard=1, stage=Stage.PARSE)]
    late = folded(*start, part_embedded(), part_indexed())
    assert (late.status, late.embed_done, late.index_done) == (TaskStatus.FAILED, 1, 1)


def test_an_earlier_failure_that_arrives_late_moves_the_end() -> None:
    end = folded(planned(), unit_failed(failed_at=after(9)), unit_failed(part=1, failed_at=after(4), code="earlier"))
    assert (end.error_code, end.failed_at, end.completed_at) == ("earlier", after(4), after(4))


def test_a_unit_that_succeeds_after_it_failed_is_counted() -> None:
    start: list[TaskEvent] = [planned(), shard_extracted(), unit_failed()]
    assert folded(*start, part_embedded()).embed_done == 1


def test_a_unit_that_fails_after_it_succeeded_is_ignored() -> None:
    start: list[TaskEvent] = [planned(), shard_extracted(), part_embedded()]
    assert columns(folded(*start, unit_failed())) == columns(folded(*start))


@pytest.mark.parametrize("status", [TaskStatus.CANCELED, TaskStatus.FAILED, TaskStatus.COMPLETED])
def test_late_events_do_not_move_a_task_that_is_over(status: TaskStatus) -> None:
    task = row(status=status, completed_at=NOON)
    end = fold([[planned(), shard_extracted(), part_embedded(), part_indexed()]], task)[-1]
    assert (end.status, end.completed_at) == (status, NOON)


def test_settling_tells_once_that_a_task_has_ended() -> None:
    task = row()
    for event in (planned(), shard_extracted(parts=0)):
        apply(task, event)
    assert [settle(task), settle(task)] == [True, False]


def test_a_plan_and_a_first_shard_are_different_units() -> None:
    units = [unit_of(planned()), unit_of(shard_extracted()), unit_of(part_embedded()), unit_of(part_indexed())]
    assert [unit.step for unit in units] == ["plan", "parse", "embed", "index"]
    assert {unit.state for unit in units} == {UnitState.DONE}


def test_a_failure_has_the_identity_of_the_unit_that_failed() -> None:
    letter = DeadLetter(topic="chunks.embedded.dlq", partition=0, offset=7)
    failed = unit_of(unit_failed(stage=Stage.INDEX, shard=3, part=2, run=4, dead_letter=letter))
    done = unit_of(part_indexed(shard=3, part=2))
    assert (failed.step, failed.shard, failed.part) == (done.step, done.shard, done.part)
    assert (failed.state, failed.started_at, failed.finished_at) == (UnitState.FAILED, None, after(3))
    assert (failed.run, failed.dead_letter) == (4, letter)


def test_a_plan_that_failed_is_no_shard_that_failed() -> None:
    units = [unit_of(unit_failed(stage=Stage.PARSE, step=step)).step for step in (Step.PLAN, Step.PARSE, None)]
    assert units == [Step.PLAN, Step.PARSE, Step.PARSE]


def test_the_plan_brings_pages_shards_and_metadata() -> None:
    event: DocumentPlanned = planned(pages=70, shards=2, metadata={"Title": "T"})
    end = folded(event)
    assert (end.pages, end.shards, end.metadata, end.engine) == (70, 2, {"Title": "T"}, "pdfium")


@given(delivered_logs())
def test_every_retry_is_counted_once_and_the_one_that_is_due_next_is_shown(case: tuple[Log, Batches]) -> None:
    log, batches = case
    end = fold(batches)[-1]
    retries = [event for event in log.events if isinstance(event, UnitRetryScheduled)]
    ended = {_identity(event) for event in log.events if not isinstance(event, UnitRetryScheduled)}
    last = {_identity(retry): retry for retry in retries}  # they were drawn in the order of their attempts
    pending = [retry.retry_at for identity, retry in last.items() if identity not in ended]
    assert end.retry_count == len(retries)
    assert end.next_retry_at == (min(pending) if pending and not end.final else None)


def _identity(event: TaskEvent) -> tuple[Step, int, int]:
    if isinstance(event, UnitRetryScheduled):
        return step_of(event), event.shard, event.part
    unit = unit_of(event)
    return unit.step, unit.shard, unit.part


RETRY = retry_scheduled(part=2, parts=9, attempt=1, attempts=4, failed_at=after(3), retry_at=after(63))


@pytest.mark.parametrize(
    ("events", "work"),
    [
        ([planned(shards=1), RETRY], "embedding part 3/9"),
        ([RETRY, planned(shards=1)], "embedding part 3/9"),
        ([planned(shards=8), RETRY.model_copy(update={"shard": 1})], "embedding part 3/9 of shard 2/8"),
        ([RETRY], "embedding part 3/9 of shard 1/?"),
        ([planned(shards=1), RETRY.model_copy(update={"parts": None})], "embedding part 3/?"),
        ([planned(shards=1), RETRY.model_copy(update={"stage": Stage.INDEX})], "indexing part 3/9"),
        ([planned(shards=8), retry_scheduled(stage=Stage.PARSE, shard=1)], "parsing shard 2/8"),
        ([retry_scheduled(stage=Stage.PARSE, step=Step.PLAN)], "reading the document"),
    ],
)
def test_a_retry_is_told_in_words(events: list[TaskEvent], work: str) -> None:
    end = folded(*events)
    assert end.status == TaskStatus.RUNNING
    assert end.message(after(3)) == f"{work} failed: rate limited; trying again in 60 s (2 of 4)"
    assert end.message(after(62.5)) == f"{work} failed: rate limited; trying again in 1 s (2 of 4)"
    assert end.message(after(63)) == f"{work} failed: rate limited; trying again now (2 of 4)"


def test_a_long_reason_of_many_lines_is_told_in_one_short_line() -> None:
    message = folded(RETRY.model_copy(update={"message": "no\n answer\t" + "x" * 2000})).message(after(3))
    assert "failed: no answer xxx" in message
    assert len(message) < 300


def test_the_message_goes_back_to_the_work_once_the_retried_part_is_done() -> None:
    end = folded(planned(shards=2), RETRY, part_embedded(part=2))
    assert (end.next_retry_at, end.retry_count) == (None, 1)
    assert end.message(after(3)).startswith("parsed 0 of 4 pages, embedded 1")


def test_the_last_attempt_of_a_part_is_the_one_that_is_told() -> None:
    second = RETRY.model_copy(update={"attempt": 2, "retry_at": after(200), "message": "away"})
    assert folded(second, RETRY).message(after(190)).endswith("failed: away; trying again in 10 s (3 of 4)")
