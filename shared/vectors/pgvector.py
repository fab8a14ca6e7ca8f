"""Vectors in PostgreSQL, with the pgvector extension."""

import hashlib
import math
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Self
from uuid import UUID

import asyncpg
import numpy as np
from numpy.typing import NDArray

from shared.database.pool import COMMAND_TIMEOUT, Connection, Pool, acquire, keep_session
from shared.errors import DependencyUnavailableError, EmbeddingMismatchError
from shared.settings import DatabaseSettings
from shared.vectors.port import Hit, StoredChunk

HNSW_M, HNSW_EF_CONSTRUCTION = 12, 40
"""Links of a vector, and candidates looked at when one is added. Against pgvector's 16 and 64, 50,000 vectors of
256 dimensions go in 1.6 times as fast; `EF_SEARCH` brings the recall back (0.98 of the true ten best)."""

EF_SEARCH = 200
"""Candidates of a search, against pgvector's 40: twice the time, 2 to 5 ms in 50,000 vectors."""

MAX_EF_SEARCH = 1000
"""pgvector's limit."""

EXACT_UP_TO = 2_000
"""An owner with no more chunks is searched without the index: exact, and as fast (2.5 ms)."""

MAX_VECTOR_INDEX = 2_000
"""The most dimensions that pgvector indexes as float32; above, the index holds half floats."""

PREPARE_TIMEOUT = timedelta(hours=1)
"""For an index over chunks that are there already: 50,000 take some seconds, so this is enough for millions."""

PREPARE_LOCK = 7_265_812
"""Key of the advisory lock of `prepare`: two migrations at once must not make the same index twice."""

_NOT_MIGRATED = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedObjectError)

# The rows come sorted by their key, so that two writers of the same chunks wait for each other and never deadlock.
# A row that is there already, the same, is left alone: writing it anew would put its vector into the index again.
UPSERT = """
INSERT INTO chunks (chunk_id, document_id, task_id, owner, filename, model, dimension, version,
                    first_page, last_page, text, embedding)
SELECT chunk_id, document_id, task_id, owner, filename, $1, $2, version, first_page, last_page, text, embedding
FROM unnest($3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::bigint[],
            $9::integer[], $10::integer[], $11::text[], $12::vector[])
    AS new (chunk_id, document_id, task_id, owner, filename, version, first_page, last_page, text, embedding)
ON CONFLICT (chunk_id) DO UPDATE SET
    dimension = excluded.dimension, first_page = excluded.first_page, last_page = excluded.last_page,
    text = excluded.text, embedding = excluded.embedding
WHERE (chunks.dimension, chunks.first_page, chunks.last_page, chunks.text, chunks.embedding)
    IS DISTINCT FROM
      (excluded.dimension, excluded.first_page, excluded.last_page, excluded.text, excluded.embedding)
"""

# Locked in the order of an upsert, for the same reason.
REMOVE = """
WITH old AS (SELECT chunk_id FROM chunks WHERE {condition} ORDER BY chunk_id FOR UPDATE),
     gone AS (DELETE FROM chunks USING old WHERE chunks.chunk_id = old.chunk_id RETURNING 1)
SELECT count(*) FROM gone
"""

RETIRE = REMOVE.format(condition="owner = $1 AND document_id = $2 AND version < $3")

DISCARD = REMOVE.format(condition="owner = $1 AND task_id = $2")

COUNT = "SELECT count(*) FROM chunks WHERE owner = $1 AND document_id = $2"

# Settings of one search, and whether the owner has more than $3 chunks. The scan goes on past chunks of other
# owners until it has enough. Each search is planned for its owner: a plan for any owner misjudges small ones.
BEFORE_SEARCH = """
SELECT set_config('hnsw.iterative_scan', 'strict_order', true),
       set_config('hnsw.ef_search', $1, true),
       set_config('plan_cache_mode', 'force_custom_plan', true),
       (SELECT count(*) FROM (SELECT FROM chunks WHERE owner = $2 LIMIT $3 + 1) AS seen) > $3 AS many
"""

SEARCH = """
SELECT 1 - ({embedding} <=> {query}) AS score, text, filename, first_page, last_page, document_id, chunk_id, version
FROM chunks
WHERE owner = $2 AND model = {model} AND dimension = {dimension}
ORDER BY {embedding} <=> {query}
LIMIT {limit}
"""


class PgVectorStore:
    """Chunks in the table `chunks`, one HNSW index for each model and dimension; see `VectorStore`.

    Parameters
    ----------
    pool
        Of connections that went through `_prepare_connection`; the store closes it.
    model, dimension
        Which vectors it keeps.
    """

    def __init__(self, pool: Pool, model: str, dimension: int) -> None:
        self._pool = pool
        self._model = model
        self._dimension = dimension
        # An index of an expression serves a query that has the very same expression, and its condition as literals.
        self._type = f"{'vector' if dimension <= MAX_VECTOR_INDEX else 'halfvec'}({dimension})"
        self._indexed = f"(embedding::{self._type})"
        self._literal = _literal(model)

    @classmethod
    async def open(cls, settings: DatabaseSettings, model: str, dimension: int) -> Self:
        """Open a store that connects on first use, so that a service also starts while the database is away."""
        pool = await asyncpg.create_pool(
            settings.database_url.get_secret_value(),
            min_size=0,
            max_size=settings.database_pool_size,
            command_timeout=COMMAND_TIMEOUT.total_seconds(),
            init=_prepare_connection,
            reset=keep_session,
        )
        return cls(pool, model, dimension)

    async def prepare(self) -> None:
        """Make the model's index; see `VectorStore`."""
        digest = hashlib.sha256(self._model.encode()).hexdigest()[:12]
        index = f"""
            CREATE INDEX IF NOT EXISTS chunks_hnsw_{digest}_{self._dimension} ON chunks
            USING hnsw ({self._indexed} {self._type.partition("(")[0]}_cosine_ops)
            WITH (m = {HNSW_M}, ef_construction = {HNSW_EF_CONSTRUCTION})
            WHERE model = {self._literal} AND dimension = {self._dimension}
        """
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", PREPARE_LOCK)
            await connection.execute(index, timeout=PREPARE_TIMEOUT.total_seconds())

    async def upsert(self, chunks: Sequence[StoredChunk]) -> None:
        """Store chunks; see `VectorStore`."""
        rows = _once(chunks)
        if not rows:
            return
        vectors = _pack(self._checked(chunk.vector) for chunk in rows)
        columns = zip(*(_row(chunk) for chunk in rows), strict=True)
        async with self._connection() as connection:
            await connection.execute(UPSERT, self._model, self._dimension, *map(list, columns), vectors)

    async def retire(self, owner: str, document_id: UUID, before_version: int) -> int:
        """Remove a document's older chunks; see `VectorStore`."""
        async with self._connection() as connection:
            return int(await connection.fetchval(RETIRE, owner, document_id, before_version))

    async def discard(self, owner: str, task_id: UUID) -> int:
        """Remove a task's chunks; see `VectorStore`."""
        async with self._connection() as connection:
            return int(await connection.fetchval(DISCARD, owner, task_id))

    async def search(self, owner: str, vector: NDArray[np.float32], limit: int) -> list[Hit]:
        """Return the owner's chunks that are most like a vector; see `VectorStore`."""
        [query] = _pack([self._checked(vector)])
        if limit < 1 or not vector.any():
            return []
        breadth = str(min(max(EF_SEARCH, limit), MAX_EF_SEARCH))
        async with self._connection() as connection, connection.transaction(readonly=True):
            before = await connection.fetchrow(BEFORE_SEARCH, breadth, owner, EXACT_UP_TO)
            rows: list[asyncpg.Record] = []
            if before is not None and before["many"]:
                rows = await connection.fetch(self._search_sql(self._indexed, self._type, limit), query, owner)
            if len(rows) < limit:  # the scan has a limit of its own, which an owner with a small share can reach
                rows = await connection.fetch(self._search_sql("embedding", "vector", limit), query, owner)
        # The score of a stored vector of zeros is not a number.
        return [Hit(**row) for row in rows if not math.isnan(row["score"])]

    async def count(self, owner: str, document_id: UUID) -> int:
        """Return how many chunks a document has; see `VectorStore`."""
        async with self._connection() as connection:
            return int(await connection.fetchval(COUNT, owner, document_id))

    async def ready(self) -> bool:
        """Tell whether the database answers and has the table; see `VectorStore`."""
        try:
            async with self._connection() as connection:
                await connection.execute("SELECT FROM chunks LIMIT 0")
        except DependencyUnavailableError:
            return False
        return True

    async def aclose(self) -> None:
        """Close the connections; see `VectorStore`."""
        await self._pool.close()

    def _search_sql(self, embedding: str, kind: str, limit: int) -> str:
        return SEARCH.format(
            embedding=embedding,
            query=f"$1::vector::{kind}",
            model=self._literal,
            dimension=self._dimension,
            limit=int(limit),
        )

    def _checked(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        if vector.shape != (self._dimension,):
            raise EmbeddingMismatchError(
                f"a vector has shape {vector.shape}, but {self._model} is indexed with {self._dimension} dimensions:"
                " all services need the same EMBEDDING_MODEL and EMBEDDING_DIM"
            )
        return vector

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Lend a connection, and translate what a migration will heal."""
        try:
            async with acquire(self._pool) as connection:
                yield connection
        except _NOT_MIGRATED as error:
            raise DependencyUnavailableError(
                f"the database is not migrated, run `paperlane migrate`: {error}"
            ) from error


async def _prepare_connection(connection: asyncpg.Connection) -> None:
    """Send vectors as packed bytes: an eighth of the client's time and half of the server's, against text."""
    schema = await connection.fetchval(
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
    )
    if schema is None:
        raise DependencyUnavailableError("the database lacks the extension `vector`: run `paperlane migrate`")
    await connection.set_type_codec("vector", schema=schema, encoder=bytes, decoder=bytes, format="binary")


def _pack(vectors: Iterable[NDArray[np.float32]]) -> list[bytes]:
    """Return vectors in pgvector's wire format: dimension and a zero as int16, the numbers, all big-endian."""
    matrix = np.stack(list(vectors)).astype(">f4")
    header = struct.pack(">HH", matrix.shape[1], 0)
    return [header + row.tobytes() for row in matrix]


def _once(chunks: Iterable[StoredChunk]) -> list[StoredChunk]:
    """Return each chunk once, as it was given last, sorted by its key."""
    last = {chunk.chunk_id: chunk for chunk in chunks}
    return [last[key] for key in sorted(last)]


def _row(chunk: StoredChunk) -> tuple[object, ...]:
    """Return a chunk's columns in the order of `UPSERT`."""
    return (
        chunk.chunk_id,
        chunk.document_id,
        chunk.task_id,
        chunk.owner,
        chunk.filename,
        chunk.version,
        chunk.first_page,
        chunk.last_page,
        chunk.text,
    )


def _literal(text: str) -> str:
    """Quote a text for SQL, where a parameter cannot stand."""
    if "\0" in text or "\\" in text:
        raise ValueError(f"{text!r} is no name of a model: it holds a backslash or a NUL")
    return "'" + text.replace("'", "''") + "'"
