"""The searchable chunks of documents, with their vectors.

The HNSW index of an embedding model is made by `PgVectorStore.prepare`, for only the settings know the model.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UP = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    # One table for all models: `embedding` has no fixed dimension, each model has a partial index of its own.
    # `version` is the task's `submitted_at` in microseconds since the epoch: the newer task's chunks win.
    """
    CREATE TABLE chunks (
        chunk_id uuid PRIMARY KEY,
        document_id uuid NOT NULL,
        task_id uuid NOT NULL,
        owner text NOT NULL,
        filename text NOT NULL,
        model text NOT NULL,
        dimension integer NOT NULL,
        version bigint NOT NULL,
        first_page integer NOT NULL,
        last_page integer NOT NULL,
        text text NOT NULL,
        embedding vector NOT NULL
    )
    """,
    # Rows above 2 kB would have their vectors moved to a side table, one more index write each. Up to 8 kB they
    # stay whole: twice the rows a second without a vector index.
    "ALTER TABLE chunks SET (toast_tuple_target = 8160)",
    # Retires and counts a document, and reads all that an owner has where the vector index is no help.
    "CREATE INDEX chunks_owner_document ON chunks (owner, document_id, version)",
)
DOWN = ("DROP TABLE chunks",)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
