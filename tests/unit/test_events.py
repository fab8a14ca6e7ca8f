import json
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.events import TASK_EVENT, ChunksEmbedded, Event, Stage, Step, chunk_id, document_id
from tests.support.builders import (
    DOCUMENT,
    OTHER_TASK,
    TASK,
    embedded,
    extracted,
    pages_requested,
    part_embedded,
    part_indexed,
    planned,
    retry_scheduled,
    shard_extracted,
    submitted,
    unit_failed,
    updated,
)

TASK_EVENTS: list[Any] = [
    planned(),
    shard_extracted(),
    part_embedded(),
    part_indexed(),
    retry_scheduled(),
    unit_failed(),
]
EVENTS: list[Event] = [*TASK_EVENTS, submitted(), pages_requested(), extracted(), embedded(), updated(2)]


def named(event: Event) -> str:
    return type(event).__name__


@pytest.mark.parametrize("event", EVENTS, ids=named)
def test_an_event_reads_back_as_it_was_written(event: Event) -> None:
    assert type(event).model_validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize("event", EVENTS, ids=named)
def test_an_event_carries_its_schema_version_and_no_other_is_read(event: Event) -> None:
    document = json.loads(event.model_dump_json())
    assert document["schema_version"] == 1
    with pytest.raises(ValidationError, match="schema_version"):
        type(event).model_validate(document | {"schema_version": 2})


@pytest.mark.parametrize("event", EVENTS, ids=named)
def test_fields_that_a_newer_producer_adds_are_ignored(event: Event) -> None:
    document = json.loads(event.model_dump_json()) | {"invented_later": [1]}
    assert type(event).model_validate_json(json.dumps(document)) == event


@pytest.mark.parametrize("event", EVENTS, ids=named)
def test_an_event_is_not_changed_after_the_fact(event: Event) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        event.task_id = uuid4()  # type: ignore[misc]  # what must not work


@pytest.mark.parametrize("event", TASK_EVENTS, ids=named)
def test_task_events_are_told_apart_by_their_kind(event: Event) -> None:
    assert TASK_EVENT.validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize("kind", [None, "task_exploded", 3])
def test_a_task_event_of_unknown_kind_is_none(kind: object) -> None:
    with pytest.raises(ValidationError, match="kind"):
        TASK_EVENT.validate_python(json.loads(planned().model_dump_json()) | {"kind": kind})


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        (planned(), "pages", 0),
        (planned(), "shards", 0),
        (shard_extracted(), "pages", 0),
        (shard_extracted(), "parts", -1),
        (part_embedded(), "dimension", 0),
        (part_indexed(), "weight", -1),
        (pages_requested(), "first_page", 0),
        (unit_failed(), "stage", "track"),
        (unit_failed(), "step", "track"),
        (unit_failed(), "dead_letter", {"topic": "x.dlq", "partition": 0, "offset": -1}),
        (retry_scheduled(), "attempt", 0),
        (retry_scheduled(), "retry_at", None),
        (retry_scheduled(), "run", 2**31),
        (updated(2), "progress", 101),
        (updated(2), "version", 0),
        (submitted(), "submitted_at", "yesterday"),
    ],
)
def test_a_field_out_of_its_range_is_refused(event: Event, field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        type(event).model_validate(json.loads(event.model_dump_json()) | {field: value})


@given(st.integers(1, 5), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_vectors_travel_without_the_loss_of_a_bit(chunks: int, dimension: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((chunks, dimension)).astype(np.float32)
    part = ChunksEmbedded.of(extracted(["text"] * chunks), model="tiny", vectors=vectors)
    read = ChunksEmbedded.model_validate_json(part.model_dump_json()).matrix()
    assert read.dtype == np.float32
    assert read.shape == (chunks, dimension)
    assert np.array_equal(read, vectors)


def test_vectors_of_any_layout_are_packed_row_by_row() -> None:
    columns = np.asfortranarray(np.arange(8, dtype=">f4").reshape(2, 4))
    part = ChunksEmbedded.of(extracted(), model="tiny", vectors=columns)
    assert part.matrix().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_vectors_that_do_not_fit_their_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        embedded().model_copy(update={"dimension": 3}).matrix()


def test_the_part_keeps_what_it_is_part_of() -> None:
    source = extracted(shard=7, part=8, weight=9)
    joined = embedded(shard=7, part=8, weight=9)
    assert {name: getattr(joined, name) for name in type(source).model_fields} == dict(source)
    assert (joined.model, joined.dimension) == ("tiny", 4)


def test_the_same_content_of_the_same_owner_is_the_same_document() -> None:
    assert document_id("alice", "ab" * 32) == DOCUMENT
    assert len({document_id(owner, sha) for owner in ("alice", "bob") for sha in ("ab" * 32, "cd" * 32)}) == 4


def test_a_chunks_identity_depends_on_all_that_tells_it_from_others() -> None:
    first = chunk_id(TASK, "tiny", 0, 0, 0)
    others = [
        chunk_id(OTHER_TASK, "tiny", 0, 0, 0),
        chunk_id(TASK, "large", 0, 0, 0),
        chunk_id(TASK, "tiny", 1, 0, 0),
        chunk_id(TASK, "tiny", 0, 1, 0),
        chunk_id(TASK, "tiny", 0, 0, 1),
    ]
    assert len({first, *others}) == 6
    assert first == chunk_id(TASK, "tiny", 0, 0, 0)


def test_identities_stay_what_they_were_when_the_first_chunks_were_indexed() -> None:
    assert str(document_id("local", "0" * 64)) == "1ab6ad65-ead2-5efa-8f91-d0b4388e555f"
    assert str(chunk_id(TASK, "tiny", 1, 2, 3)) == "51674df4-f5a2-5b6c-a42f-c897e6863906"


def test_every_step_belongs_to_a_stage_and_the_plan_to_the_parsers() -> None:
    assert [step.stage for step in Step] == ["parse", "parse", "embed", "index"]


def test_the_stages_are_in_the_order_of_the_pipeline() -> None:
    assert list(Stage) == ["parse", "embed", "index"]
