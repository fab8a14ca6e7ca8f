import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.indexer.index import PartIndexer, version_of
from shared.errors import DependencyUnavailableError, EmbeddingMismatchError
from shared.events import ChunksEmbedded, DocumentCompleted, PartIndexed, TaskCanceled, chunk_id
from shared.vectors import Hit, StoredChunk
from tests.support.builders import DOCUMENT, NOON, OTHER_TASK, OWNER, TASK, embedded, patience


class Shelf:
    """A vector store that keeps chunks in a dict; `error` stands for a server that is away."""

    def __init__(self) -> None:
        self.chunks: dict[UUID, StoredChunk] = {}
        self.writes: list[int] = []
        self.error: Exception | None = None

    async def prepare(self) -> None:
        """Need nothing."""

    async def upsert(self, chunks: Sequence[StoredChunk]) -> None:
        self.writes.append(len(chunks))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.chunks |= {chunk.chunk_id: chunk for chunk in chunks}

    async def retire(self, owner: str, document_id: UUID, before_version: int) -> int:
        return self._remove(
            lambda chunk: (chunk.owner, chunk.document_id) == (owner, document_id) and chunk.version < before_version
        )

    async def discard(self, owner: str, task_id: UUID) -> int:
        return self._remove(lambda chunk: (chunk.owner, chunk.task_id) == (owner, task_id))

    def _remove(self, condition: Callable[[StoredChunk], bool]) -> int:
        if self.error is not None:
            raise self.error
        gone = [key for key, chunk in self.chunks.items() if condition(chunk)]
        for key in gone:
            del self.chunks[key]
        return len(gone)

    async def search(self, owner: str, vector: NDArray[np.float32], limit: int) -> list[Hit]:
        raise NotImplementedError(f"an indexer searches nothing: {owner}, {vector}, {limit}")

    async def count(self, owner: str, document_id: UUID) -> int:
        return sum((chunk.owner, chunk.document_id) == (owner, document_id) for chunk in self.chunks.values())

    async def ready(self) -> bool:
        return self.error is None

    async def aclose(self) -> None:
        """Hold nothing."""


@pytest.fixture
def store() -> Shelf:
    return Shelf()


@pytest.fixture
async def parts(store: Shelf) -> AsyncIterator[PartIndexer]:
    indexer = PartIndexer(store, "tiny", 4, batch=3, concurrency=1)
    yield indexer
    await indexer.aclose()


def completed(**changes: object) -> DocumentCompleted:
    fields = {"task_id": TASK, "document_id": DOCUMENT, "owner": OWNER, "submitted_at": NOON}
    return DocumentCompleted.model_validate(fields | changes)


async def test_a_part_is_stored_chunk_by_chunk_and_reported(parts: PartIndexer, store: Shelf) -> None:
    [report] = await parts.index(embedded(["one", "two"], shard=2, part=3, weight=1500))
    first, second = store.chunks.values()
    assert first.chunk_id == chunk_id(TASK, "tiny", 2, 3, 0)
    assert (first.text, first.first_page, first.last_page, first.filename) == ("one", 1, 1, "x.pdf")
    assert (first.owner, first.document_id, first.task_id) == (OWNER, DOCUMENT, TASK)
    assert first.version == round(NOON.timestamp() * 1_000_000)
    assert (second.chunk_id, second.text) == (chunk_id(TASK, "tiny", 2, 3, 1), "two")
    assert (first.vector.tolist(), second.vector.tolist()) == ([1, 0, 0, 0], [0, 1, 0, 0])
    assert (report.topic, report.key) == ("task.events", str(TASK).encode())
    done = PartIndexed.model_validate_json(report.value or b"")
    assert (done.task_id, done.shard, done.part, done.weight) == (TASK, 2, 3, 1500)
    assert done.started_at <= done.finished_at


async def test_a_part_that_comes_twice_is_there_once(parts: PartIndexer, store: Shelf) -> None:
    for _ in range(2):
        await parts.index(embedded(["one", "two"]))
    assert len(store.chunks) == 2


async def test_two_tasks_of_a_document_have_chunks_of_their_own(parts: PartIndexer, store: Shelf) -> None:
    for task_id in (TASK, OTHER_TASK):
        await parts.index(embedded(["one", "two"], task_id=task_id))
    assert sorted(chunk.text for chunk in store.chunks.values()) == ["one", "one", "two", "two"]


async def test_parts_at_the_same_time_share_writes_of_the_configured_size(parts: PartIndexer, store: Shelf) -> None:
    async with patience():
        reports = await asyncio.gather(*(parts.index(embedded(["one", "two"], part=part)) for part in range(3)))
    assert store.writes == [3, 3]
    assert [PartIndexed.model_validate_json(report.value or b"").part for [report] in reports] == [0, 1, 2]


@pytest.mark.parametrize(
    ("model", "dimension", "found"),
    [("large", 4, "large with 4 dimensions"), ("tiny", 3, "tiny with 3 dimensions")],
)
async def test_a_part_of_another_model_is_refused_with_what_to_set(
    parts: PartIndexer, store: Shelf, model: str, dimension: int, found: str
) -> None:
    vectors = np.ones((2, dimension), dtype=np.float32)
    with pytest.raises(EmbeddingMismatchError, match=found) as caught:
        await parts.index(embedded(model=model, vectors=vectors))
    assert "the index is for tiny with 4" in str(caught.value)
    assert "EMBEDDING_MODEL" in str(caught.value)
    assert store.writes == []


async def test_a_store_that_is_away_is_told_to_the_runner(parts: PartIndexer, store: Shelf) -> None:
    store.error = DependencyUnavailableError("the database does not answer")
    with pytest.raises(DependencyUnavailableError):
        await parts.index(embedded())


async def test_a_completed_document_takes_the_place_of_its_older_versions_only(
    parts: PartIndexer, store: Shelf
) -> None:
    newer = NOON + timedelta(microseconds=1)
    await parts.index(embedded(["old"], part=0))
    await parts.index(embedded(["old, too"], part=0, task_id=OTHER_TASK))
    await parts.index(embedded(["new"], part=1, submitted_at=newer))
    await parts.index(embedded(["newest"], part=2, submitted_at=newer + timedelta(days=1)))
    await parts.index(embedded(["another's"], part=0, document_id=TASK))
    assert await parts.retire(completed(submitted_at=newer)) == []
    assert sorted(chunk.text for chunk in store.chunks.values()) == ["another's", "new", "newest"]


@pytest.mark.parametrize(
    "event", [TaskCanceled(task_id=TASK, document_id=DOCUMENT, owner=OWNER), embedded(["waits"], part=2)]
)
async def test_a_canceled_task_takes_what_was_indexed_of_it_along_and_nothing_else(
    parts: PartIndexer, store: Shelf, event: TaskCanceled | ChunksEmbedded
) -> None:
    await parts.index(embedded(["one"], part=0))
    await parts.index(embedded(["two"], part=1))
    await parts.index(embedded(["another's"], task_id=OTHER_TASK))
    for _ in range(2):
        assert await parts.discard(event) == []
        assert [chunk.text for chunk in store.chunks.values()] == ["another's"]


async def test_a_removal_that_fails_is_told_to_the_runner(parts: PartIndexer, store: Shelf) -> None:
    store.error = DependencyUnavailableError("the database does not answer")
    with pytest.raises(DependencyUnavailableError):
        await parts.discard(embedded())
    with pytest.raises(DependencyUnavailableError):
        await parts.retire(completed())


@given(st.datetimes(datetime(2020, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001  the zone is added below
def test_versions_tell_microseconds_apart(moment: datetime) -> None:
    first = moment.replace(tzinfo=NOON.tzinfo)
    assert version_of(first + timedelta(microseconds=1)) == version_of(first) + 1
