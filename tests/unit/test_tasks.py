from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import PAGE_WEIGHT, DocumentSubmitted, Stage, TaskCanceled, TaskUpdated
from shared.tasks import FINAL, STAGE_SHARES, TaskRow, TaskStatus, canceled, public_task, submitted, update_of
from tests.support.builders import DOCUMENT, NOON, OWNER, SHA256, TASK, after, row


def at_work(**changes: Any) -> TaskRow:
    """Return a task of 10 pages in 2 shards, of which one has been extracted into 3 parts, 2 embedded, 1 indexed."""
    state: dict[str, Any] = {
        "status": "running",
        "pages": 10,
        "shards": 2,
        "parts": 3,
        "parse_done": 1,
        "embed_done": 2,
        "index_done": 1,
        "parse_weight": 5 * PAGE_WEIGHT,
        "embed_weight": 3 * PAGE_WEIGHT,
        "index_weight": 1 * PAGE_WEIGHT,
        "parse_started_at": after(1),
        "parse_finished_at": after(2),
    }
    return row(**state | changes)


def retrying(**changes: Any) -> TaskRow:
    """Return a task of which a part waits for its second attempt."""
    retry = {"retry_count": 1, "next_retry_at": after(30), "retry_attempt": 2, "retry_attempts": 4}
    return at_work(**{"retry_message": "parsing shard 2/2 failed: away"} | retry | changes)


def completed(**changes: Any) -> TaskRow:
    state: dict[str, Any] = {
        "status": "completed",
        "parse_done": 2,
        "embed_done": 3,
        "index_done": 3,
        "chunks": 12,
        "characters": 999,
        "tokens": 321,
        "model": "tiny",
        "dimension": 4,
        "completed_at": after(9),
    }
    return at_work(**state | changes)


def failed(**changes: Any) -> TaskRow:
    state = {"error_stage": "parse", "error_code": "pdf_encrypted", "error_message": "a password is needed"}
    return at_work(**{"status": "failed", "failed_at": after(4)} | state | changes)


def test_the_final_states_are_completed_failed_and_canceled() -> None:
    assert {status for status in TaskStatus if row(status=status).final} == FINAL
    assert {"completed", "failed", "canceled"} == FINAL


def test_the_stages_share_a_hundred_percent() -> None:
    assert list(STAGE_SHARES) == list(Stage)
    assert sum(STAGE_SHARES.values()) == 100


@pytest.mark.parametrize(
    ("task", "percent"),
    [
        (row(), 0),
        (row(parse_weight=5000, index_weight=5000), 0),
        (at_work(), (33 * 5 + 33 * 3 + 34 * 1) // 10),
        (at_work(parse_weight=10_000, embed_weight=10_000, index_weight=10_000), 99),
        (completed(index_weight=0), 100),
        (failed(parse_weight=10_000, embed_weight=10_000, index_weight=10_000), 99),
        (row(status="canceled"), 0),
    ],
)
def test_progress_is_weighted_by_pages_and_100_is_for_the_completed(task: TaskRow, percent: int) -> None:
    assert task.progress == percent


weights = st.integers(0, 50_000)


@given(st.integers(1, 50), st.tuples(weights, weights, weights), st.tuples(weights, weights, weights))
def test_more_work_done_never_means_less_progress(
    pages: int, done: tuple[int, int, int], more: tuple[int, int, int]
) -> None:
    def progress(parse: int, embed: int, index: int) -> int:
        return row(status="running", pages=pages, parse_weight=parse, embed_weight=embed, index_weight=index).progress

    later = [a + b for a, b in zip(done, more, strict=True)]
    assert 0 <= progress(*done) <= progress(*later) <= 99


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (row(), "waiting for a parser"),
        (row(status="running"), "parsed 0 of ? pages, embedded 0 and indexed 0 of ? parts"),
        (at_work(), "parsed 5 of 10 pages, embedded 2 and indexed 1 of ? parts"),
        (retrying(), "parsing shard 2/2 failed: away; trying again in 30 s (2 of 4)"),
        (
            retrying(next_retry_at=NOON - timedelta(hours=1)),
            "parsing shard 2/2 failed: away; trying again now (2 of 4)",
        ),
        (retrying(next_retry_at=None), "parsed 5 of 10 pages, embedded 2 and indexed 1 of ? parts"),
        (retrying(status="canceled"), "canceled"),
        (at_work(parse_done=2, parse_weight=10_000), "parsed 10 of 10 pages, embedded 2 and indexed 1 of 3 parts"),
        (completed(), "completed: 10 pages, 12 chunks"),
        (failed(), "failed to parse: a password is needed"),
        (row(status="canceled"), "canceled"),
    ],
)
def test_the_message_says_what_happens_now(task: TaskRow, message: str) -> None:
    assert task.message(NOON) == message


def test_a_task_is_complete_only_once_every_stage_has_reported_everything() -> None:
    assert not at_work(embed_done=3, index_done=3).complete
    assert not at_work(parse_done=2, embed_done=3, index_done=2).complete
    assert not at_work(parse_done=2, embed_done=2, index_done=3).complete
    assert at_work(parse_done=2, embed_done=3, index_done=3).complete
    assert not row(parse_done=1, index_done=3).parsed


def test_a_task_is_shown_with_what_was_uploaded() -> None:
    task = public_task(retrying(version=7, metadata={"Title": "T"}, retry_count=2))
    assert (task.task_id, task.version, task.status, task.progress) == (TASK, 7, TaskStatus.RUNNING, 29)
    assert task.next_retry_at == after(30)
    assert (task.params.filename, task.params.size, task.params.sha256) == ("x.pdf", 1234, SHA256)
    assert (task.metadata, task.retry_count, task.created_at) == ({"Title": "T"}, 2, NOON)
    assert (task.result, task.error) == (None, None)


def test_a_stage_has_a_total_once_it_is_known_and_an_end_once_it_is_reached() -> None:
    stages = public_task(at_work(embed_finished_at=after(3))).stages
    assert (stages[Stage.PARSE].done, stages[Stage.PARSE].total, stages[Stage.PARSE].finished) == (1, 2, None)
    assert (stages[Stage.EMBED].done, stages[Stage.EMBED].total, stages[Stage.EMBED].finished) == (2, None, None)
    over = public_task(at_work(parse_done=2, embed_done=3, embed_finished_at=after(3))).stages
    assert (over[Stage.PARSE].started, over[Stage.PARSE].finished) == (after(1), after(2))
    assert (over[Stage.EMBED].total, over[Stage.EMBED].finished) == (3, after(3))
    assert (over[Stage.INDEX].total, over[Stage.INDEX].finished) == (3, None)


def test_a_completed_task_has_a_result() -> None:
    result = public_task(completed()).result
    assert result is not None
    assert (result.file, result.document_id, result.pages, result.chunks) == ("x.pdf", DOCUMENT, 10, 12)
    assert (result.content_length, result.tokens, result.model, result.embedding_dim) == (999, 321, "tiny", 4)
    assert result.warnings == []


@pytest.mark.parametrize(
    ("without_text", "warnings"),
    [(0, []), (3, ["no text on 3 of 10 pages"]), (10, ["no text on 10 of 10 pages: scanned?"])],
)
def test_pages_without_text_are_a_warning(without_text: int, warnings: list[str]) -> None:
    result = public_task(completed(pages_without_text=without_text)).result
    assert result is not None
    assert result.warnings == warnings


def test_a_failed_task_has_an_error_and_no_result() -> None:
    task = public_task(failed())
    assert task.error is not None
    assert task.error.model_dump() == {"code": "pdf_encrypted", "message": "a password is needed", "stage": "parse"}
    assert task.result is None


def test_a_completed_task_shows_no_error_though_a_unit_failed_late() -> None:
    assert public_task(completed(error_code="x", error_stage="index", failed_at=after(20))).error is None


@pytest.mark.parametrize("task", [row(), at_work(), retrying(), completed(), failed(), row(status="canceled")])
def test_an_update_says_the_same_as_the_api(task: TaskRow) -> None:
    update = TaskUpdated.model_validate_json(update_of(task, lambda: NOON).model_dump_json())
    told = update.model_dump(mode="json", exclude={"schema_version"})
    shown = public_task(task, lambda: NOON).model_dump(mode="json")
    assert told == {name: shown[name] for name in told}


def test_a_row_is_made_of_a_record_with_all_columns() -> None:
    record = {field.name: getattr(completed(), field.name) for field in fields(TaskRow)}
    assert TaskRow(**record) == completed()


def test_a_task_that_was_canceled_is_told_to_all_who_work_for_it() -> None:
    assert canceled(row(status="canceled")) == TaskCanceled(task_id=TASK, document_id=DOCUMENT, owner=OWNER)


def test_a_task_enters_the_pipeline_as_what_was_uploaded() -> None:
    event = submitted(row())
    assert event == DocumentSubmitted(
        task_id=TASK,
        document_id=DOCUMENT,
        owner=OWNER,
        filename="x.pdf",
        submitted_at=NOON,
        blob_url=row().blob_url,
        size=1234,
        sha256=SHA256,
    )
