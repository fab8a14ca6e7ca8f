"""One contract for all vector stores, then what is peculiar to one."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from uuid import UUID, uuid4, uuid5

import asyncpg
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import SecretStr

from shared.errors import DependencyUnavailableError, EmbeddingMismatchError
from shared.settings import VectorSettings
from shared.vectors import StoredChunk, VectorStore, create_vector_store
from shared.vectors.pgvector import EXACT_UP_TO, PgVectorStore, _pack
from tests.support.eventually import eventually

DIMENSION = 16
MODEL = "it's a test/model:16"
DOCUMENT = UUID(int=1)
TASK, OTHER_TASK = UUID(int=7), UUID(int=8)
Vector = NDArray[np.float32]
Make = Callable[..., StoredChunk]


# --- the contract ---


@pytest.fixture(params=["pgvector"])
async def store(request: pytest.FixtureRequest, settings: VectorSettings) -> AsyncIterator[VectorStore]:
    chosen = settings.model_copy(update={"vector_store": request.param})
    opened = await create_vector_store(chosen, MODEL, DIMENSION)
    await opened.prepare()
    yield opened
    await opened.aclose()


@pytest.fixture
def owner() -> str:
    return f"owner-{uuid4()}"


@pytest.fixture
def make(owner: str) -> Make:
    """Make chunks of one owner: chunk n of the document points along axis n."""

    def chunk(n: int = 0, *, task_id: UUID = TASK, **fields: object) -> StoredChunk:
        base = StoredChunk(
            chunk_id=uuid5(task_id, f"{owner}/{n}"),
            document_id=DOCUMENT,
            task_id=task_id,
            owner=owner,
            filename="report.pdf",
            version=100,
            text=f"chunk {n}: naïve ☃",
            first_page=n + 1,
            last_page=n + 2,
            vector=axis(n),
        )
        return replace(base, **fields)  # type: ignore[arg-type]  # the tests name fields of StoredChunk

    return chunk


def axis(n: int) -> Vector:
    vector: Vector = np.eye(DIMENSION, dtype=np.float32)[n % DIMENSION]
    return vector


def tilted(n: int, towards: int, amount: float) -> Vector:
    mixed = axis(n) + np.float32(amount) * axis(towards)
    unit: Vector = (mixed / np.linalg.norm(mixed)).astype(np.float32)
    return unit


async def texts(store: VectorStore, owner: str, vector: Vector, limit: int = 10) -> list[str]:
    return [hit.text for hit in await store.search(owner, vector, limit)]


async def test_what_is_stored_is_found_whole(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(3)])
    [hit] = await store.search(owner, axis(3), 5)
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert (hit.text, hit.filename, hit.first_page, hit.last_page) == ("chunk 3: naïve ☃", "report.pdf", 4, 5)
    assert (hit.document_id, hit.chunk_id, hit.version) == (DOCUMENT, make(3).chunk_id, 100)


async def test_storing_twice_is_storing_once(store: VectorStore, owner: str, make: Make) -> None:
    chunks = [make(n) for n in range(5)]
    await store.upsert(chunks)
    await store.upsert(chunks[::-1])
    assert await store.count(owner, DOCUMENT) == 5
    assert len(await store.search(owner, axis(0), 10)) == 5


async def test_nothing_to_store_is_fine(store: VectorStore, owner: str) -> None:
    await store.upsert([])
    assert await store.count(owner, DOCUMENT) == 0


async def test_a_chunk_can_be_corrected(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(0), make(1)])
    await store.upsert([make(0, text="better", first_page=8, last_page=9, vector=axis(5))])
    best, other = await store.search(owner, axis(5), 10)
    assert (best.text, best.first_page, best.last_page, round(best.score, 3)) == ("better", 8, 9, 1)
    assert other.text == "chunk 1: naïve ☃"


async def test_of_duplicates_in_one_call_the_last_stays(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(0, text="first"), make(0, text="last"), make(1), make(1)])
    assert await texts(store, owner, axis(0)) == ["last", "chunk 1: naïve ☃"]


async def test_two_tasks_of_a_document_have_chunks_of_their_own(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(0, version=1), make(0, task_id=OTHER_TASK, version=2)])
    await store.upsert([make(0, version=1)])
    hits = await store.search(owner, axis(0), 10)
    assert sorted((hit.text, hit.version) for hit in hits) == [("chunk 0: naïve ☃", 1), ("chunk 0: naïve ☃", 2)]
    assert await store.count(owner, DOCUMENT) == 2


async def test_retiring_removes_what_is_older_and_only_that(store: VectorStore, owner: str, make: Make) -> None:
    other_document = make(8, document_id=UUID(int=2), version=1)
    await store.upsert([make(0, version=1), make(1, version=2), make(2, version=3), other_document])
    assert await store.retire(f"not-{owner}", DOCUMENT, 3) == 0
    assert await store.retire(owner, DOCUMENT, 3) == 2
    assert await store.retire(owner, DOCUMENT, 3) == 0
    assert await store.count(owner, DOCUMENT) == 1
    assert set(await texts(store, owner, axis(2))) == {"chunk 2: naïve ☃", other_document.text}


async def test_discarding_removes_what_a_task_stored_and_only_that(store: VectorStore, owner: str, make: Make) -> None:
    another_document = make(9, document_id=UUID(int=2))
    await store.upsert([make(0), make(1), another_document, make(0, task_id=OTHER_TASK, text="another task's")])
    assert await store.discard(f"not-{owner}", TASK) == 0
    assert await store.discard(owner, TASK) == 3
    assert await store.discard(owner, TASK) == 0
    assert await texts(store, owner, axis(0)) == ["another task's"]


async def test_what_was_discarded_can_be_stored_again(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(0)])
    await store.discard(owner, TASK)
    await store.upsert([make(0)])
    assert await texts(store, owner, axis(0)) == ["chunk 0: naïve ☃"]


async def test_owners_see_only_their_own(store: VectorStore, owner: str, make: Make) -> None:
    other = f"{owner}-other"
    await store.upsert([make(0), make(1, owner=other, text="theirs")])
    assert await texts(store, owner, axis(1)) == ["chunk 0: naïve ☃"]
    assert await texts(store, other, axis(0)) == ["theirs"]
    assert await store.count(other, DOCUMENT) == 1
    assert await store.search(f"{owner}-unknown", axis(0), 5) == []


async def test_the_best_come_first_and_no_more_than_asked_for(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(n, vector=tilted(0, 1, n / 4), text=str(n)) for n in range(12)])
    hits = await store.search(owner, axis(0), 5)
    assert [hit.text for hit in hits] == ["0", "1", "2", "3", "4"]
    assert [hit.score for hit in hits] == pytest.approx(
        [float(axis(0) @ tilted(0, 1, n / 4)) for n in range(5)], abs=1e-3
    )
    assert await store.search(owner, axis(0), 0) == []
    opposite = await store.search(owner, -axis(0), 1)
    assert (opposite[0].text, opposite[0].score < 0) == ("11", True)


async def test_vectors_without_direction_are_neither_found_nor_find(store: VectorStore, owner: str, make: Make) -> None:
    nothing = np.zeros(DIMENSION, dtype=np.float32)
    await store.upsert([make(0), make(1, vector=nothing)])
    assert await texts(store, owner, axis(0)) == ["chunk 0: naïve ☃"]
    assert await store.search(owner, nothing, 5) == []


async def test_a_wrong_dimension_is_refused_before_anything_is_stored(
    store: VectorStore, owner: str, make: Make
) -> None:
    long = np.ones(DIMENSION + 1, dtype=np.float32)
    with pytest.raises(EmbeddingMismatchError, match=r"shape \(17,\).* 16 dimensions.*same EMBEDDING_MODEL"):
        await store.upsert([make(0), make(1, vector=long)])
    with pytest.raises(EmbeddingMismatchError, match="16 dimensions"):
        await store.search(owner, long, 5)
    assert await store.count(owner, DOCUMENT) == 0


async def test_writers_of_the_same_chunks_do_not_get_in_each_others_way(
    store: VectorStore, owner: str, make: Make
) -> None:
    chunks = [make(n) for n in range(200)]
    orders = [np.random.default_rng(seed).permutation(200) for seed in range(8)]
    await asyncio.gather(
        *(
            store.upsert([replace(chunks[n], text=f"writer {writer}") for n in order])
            for writer, order in enumerate(orders)
        )
    )
    assert await store.count(owner, DOCUMENT) == 200
    assert len(set(await texts(store, owner, axis(0), 200))) == 1, "the writer that came last has written all"


@pytest.mark.parametrize("mine", [30, EXACT_UP_TO + 50])
async def test_among_many_others_an_owner_still_gets_all_that_was_asked_for(
    store: VectorStore, owner: str, make: Make, mine: int
) -> None:
    rng = np.random.default_rng(1)

    def cloud(center: int, size: int) -> list[Vector]:
        points = axis(center) + rng.normal(scale=0.05, size=(size, DIMENSION)).astype(np.float32)
        return list((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32))

    others = [make(n, chunk_id=uuid4(), owner=f"{owner}-{n % 50}", vector=v) for n, v in enumerate(cloud(0, 3000))]
    own = [make(n, chunk_id=uuid4(), text=str(n), vector=v) for n, v in enumerate(cloud(3, mine))]
    await store.upsert(others + own)
    # All others are more like the query than any of one's own.
    hits = await store.search(owner, axis(0), 20)
    assert len(hits) == len({hit.chunk_id for hit in hits}) == 20
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best = np.argsort([-float(axis(0) @ chunk.vector) for chunk in own])[:20]
    assert len({hit.text for hit in hits} & {own[n].text for n in best}) >= 17
    for n in range(50):
        await store.retire(f"{owner}-{n}", DOCUMENT, 1000)


async def test_preparing_again_or_at_once_is_harmless(store: VectorStore, owner: str, make: Make) -> None:
    await store.upsert([make(0)])
    await asyncio.gather(*(store.prepare() for _ in range(4)))
    assert await store.count(owner, DOCUMENT) == 1


async def test_a_store_that_can_be_used_is_ready(store: VectorStore) -> None:
    assert await store.ready() is True


async def test_models_and_dimensions_do_not_mix(
    store: VectorStore, settings: VectorSettings, owner: str, make: Make
) -> None:
    await store.upsert([make(0)])
    for model, dimension in ((MODEL, 8), ("another", DIMENSION), ("large", 2500)):
        other = await create_vector_store(settings, model, dimension)
        await other.prepare()
        vector = np.eye(dimension, dtype=np.float32)[0]
        await other.upsert([make(0, chunk_id=uuid4(), vector=vector, text=f"{model}/{dimension}")])
        assert await texts(other, owner, vector) == [f"{model}/{dimension}"]
        await other.aclose()
    assert await texts(store, owner, axis(0)) == ["chunk 0: naïve ☃"]


# --- pgvector alone ---


@pytest.mark.parametrize(("dimension", "kind"), [(DIMENSION, "vector"), (2500, "halfvec")])
async def test_large_owners_are_searched_through_the_index(
    settings: VectorSettings, owner: str, dimension: int, kind: str
) -> None:
    store = await create_vector_store(settings, "indexed", dimension)
    assert isinstance(store, PgVectorStore)
    await store.prepare()
    try:
        async with store._connection() as connection, connection.transaction():
            await connection.execute("SET LOCAL enable_seqscan = off")
            await connection.execute("SET LOCAL enable_bitmapscan = off")
            await connection.execute("SET LOCAL enable_sort = off")
            query = store._search_sql(store._indexed, store._type, 5)
            plan = await connection.fetch("EXPLAIN " + query, *_pack([np.ones(dimension, dtype=np.float32)]), owner)
        text = "\n".join(row[0] for row in plan)
        assert "Index Scan using chunks_hnsw_" in text
        assert f"{kind}({dimension})" in text
    finally:
        await store.aclose()


async def test_a_replay_writes_nothing(settings: VectorSettings, owner: str, make: Make) -> None:
    store = await create_vector_store(settings, MODEL, DIMENSION)
    assert isinstance(store, PgVectorStore)
    place = "SELECT ctid::text FROM chunks WHERE owner = $1"
    await store.upsert([make(0)])
    async with store._connection() as connection:
        before = await connection.fetchval(place, owner)
        await store.upsert([make(0)])
        assert await connection.fetchval(place, owner) == before
        await store.upsert([make(0, text="better")])
        assert await connection.fetchval(place, owner) != before
    await store.aclose()


@pytest.mark.parametrize("remove", ["discard", "retire"])
async def test_a_write_and_a_removal_of_the_same_chunks_wait_for_each_other_in_one_order(
    settings: VectorSettings, store: VectorStore, owner: str, make: Make, remove: str
) -> None:
    chunks = sorted((make(n) for n in range(5)), key=lambda chunk: chunk.chunk_id)
    for chunk in reversed(chunks):  # so that they lie in the opposite order
        await store.upsert([chunk])
    removal = store.discard(owner, TASK) if remove == "discard" else store.retire(owner, DOCUMENT, 1000)
    admin = await asyncpg.connect(settings.database_url.get_secret_value())
    blocker = await asyncpg.connect(settings.database_url.get_secret_value())

    async def both_wait() -> None:
        locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%chunks%'"
        assert await admin.fetchval(locked) == 2

    async with blocker.transaction():
        await blocker.execute("SELECT FROM chunks WHERE chunk_id = $1 FOR UPDATE", chunks[2].chunk_id)
        both = asyncio.gather(store.upsert([replace(chunk, text="new") for chunk in chunks]), removal)
        await eventually(both_wait)
    await both
    await store.discard(owner, TASK)
    assert await store.count(owner, DOCUMENT) == 0
    await admin.close()
    await blocker.close()


async def test_a_database_that_is_away_is_unavailable(owner: str, make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nowhere = VectorSettings(database_url=SecretStr(f"postgresql://postgres:secret@127.0.0.1:{port}/postgres"))
    store = await create_vector_store(nowhere, MODEL, DIMENSION)
    assert await store.ready() is False
    with pytest.raises(DependencyUnavailableError):
        await store.upsert([make(0)])
    with pytest.raises(DependencyUnavailableError):
        await store.search(owner, axis(0), 1)
    await store.aclose()


async def test_a_connection_that_is_cut_is_unavailable_once(
    settings: VectorSettings, store: VectorStore, owner: str, make: Make
) -> None:
    await store.upsert([make(0)])
    admin = await asyncpg.connect(settings.database_url.get_secret_value())
    blocker = await asyncpg.connect(settings.database_url.get_secret_value())
    async with blocker.transaction():
        await blocker.execute("LOCK TABLE chunks IN ACCESS EXCLUSIVE MODE")
        blocked = asyncio.create_task(store.upsert([make(1)]))
        waiting = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO chunks%'"
        )
        while (pid := await admin.fetchval(waiting)) is None:  # noqa: ASYNC110 - the server's state
            await asyncio.sleep(0.01)
        await admin.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(DependencyUnavailableError):
            await blocked
    await store.upsert([make(1)])
    assert await store.count(owner, DOCUMENT) == 2
    await admin.close()
    await blocker.close()


async def test_a_database_without_the_schema_asks_for_the_migration(settings: VectorSettings, owner: str) -> None:
    admin = await asyncpg.connect(settings.database_url.get_secret_value())
    await admin.execute("CREATE DATABASE bare")
    url = settings.database_url.get_secret_value().rpartition("/")[0] + "/bare"
    store = await create_vector_store(settings.model_copy(update={"database_url": SecretStr(url)}), MODEL, DIMENSION)
    assert await store.ready() is False
    with pytest.raises(DependencyUnavailableError, match="paperlane migrate"):
        await store.search(owner, axis(0), 1)
    bare = await asyncpg.connect(url)
    await bare.execute("CREATE EXTENSION vector")
    with pytest.raises(DependencyUnavailableError, match="not migrated, run `paperlane migrate`"):
        await store.search(owner, axis(0), 1)
    await bare.close()
    await store.aclose()
    await admin.execute("DROP DATABASE bare")
    await admin.close()


async def test_a_model_whose_name_cannot_be_quoted_is_refused(settings: VectorSettings) -> None:
    with pytest.raises(ValueError, match="no name of a model"):
        await create_vector_store(settings, "back\\slash", DIMENSION)
