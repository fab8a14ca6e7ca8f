"""Tasks, the units of work they are made of, and the counters kept from both.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UP = (
    # One row per upload. Until `dispatched_at` is set, the row is also the outbox of its `documents.submitted`.
    """
    CREATE TABLE tasks (
        task_id uuid PRIMARY KEY,
        owner text NOT NULL,
        task_type text NOT NULL DEFAULT 'document_process',
        status text NOT NULL DEFAULT 'pending'
            CHECK (status IN ('pending', 'running', 'completed', 'failed', 'canceled')),
        version bigint NOT NULL DEFAULT 1,
        document_id uuid NOT NULL,
        filename text NOT NULL,
        size bigint NOT NULL,
        sha256 text NOT NULL,
        blob_url text NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        dispatched_at timestamptz,
        started_at timestamptz,
        completed_at timestamptz,
        metadata jsonb NOT NULL DEFAULT '{}',
        pages integer,
        shards integer,
        parts integer NOT NULL DEFAULT 0,
        parse_done integer NOT NULL DEFAULT 0,
        embed_done integer NOT NULL DEFAULT 0,
        index_done integer NOT NULL DEFAULT 0,
        parse_weight bigint NOT NULL DEFAULT 0,
        embed_weight bigint NOT NULL DEFAULT 0,
        index_weight bigint NOT NULL DEFAULT 0,
        parse_started_at timestamptz,
        embed_started_at timestamptz,
        index_started_at timestamptz,
        parse_finished_at timestamptz,
        embed_finished_at timestamptz,
        index_finished_at timestamptz,
        pages_without_text integer NOT NULL DEFAULT 0,
        characters bigint NOT NULL DEFAULT 0,
        chunks integer NOT NULL DEFAULT 0,
        tokens bigint NOT NULL DEFAULT 0,
        model text,
        dimension integer,
        error_stage text,
        error_code text,
        error_message text,
        failed_at timestamptz,
        retry_count integer NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX tasks_newest ON tasks (owner, created_at DESC, task_id)",
    "CREATE INDEX tasks_newest_by_status ON tasks (owner, status, created_at DESC, task_id)",
    "CREATE INDEX tasks_of_document ON tasks (document_id, created_at)",
    "CREATE INDEX tasks_undispatched ON tasks (created_at) WHERE dispatched_at IS NULL AND status = 'pending'",
    "CREATE INDEX tasks_over ON tasks (completed_at) WHERE status IN ('completed', 'failed', 'canceled')",
    # What the tracker has counted already: an event whose unit stands here is a duplicate.
    """
    CREATE TABLE task_units (
        task_id uuid NOT NULL REFERENCES tasks ON DELETE CASCADE,
        stage text NOT NULL CHECK (stage IN ('plan', 'parse', 'embed', 'index')),
        shard integer NOT NULL,
        part integer NOT NULL,
        done boolean NOT NULL,
        started_at timestamptz,
        finished_at timestamptz NOT NULL,
        PRIMARY KEY (task_id, stage, shard, part)
    )
    """,
    "CREATE INDEX task_units_latest ON task_units (stage, finished_at)",
    # Histograms that only ever grow, so that clean-up does not make a Prometheus counter go backwards.
    """
    CREATE TABLE duration_counts (
        series text NOT NULL,
        label text NOT NULL,
        bucket smallint NOT NULL,
        count bigint NOT NULL,
        seconds double precision NOT NULL,
        PRIMARY KEY (series, label, bucket)
    )
    """,
)

DOWN = ("DROP TABLE duration_counts", "DROP TABLE task_units", "DROP TABLE tasks")


def upgrade() -> None:
    for statement in UP:  # asyncpg takes one statement at a time
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
