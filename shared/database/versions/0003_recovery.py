"""What retries, replays, cancellation, the watchdog and alerts need to know.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UP = (
    # `engine` is what a lost shard is extracted with again. `retry_message`, `retry_attempt` and `retry_attempts` tell
    # of the retry that is due next. `replays` counts how often the task was reopened, `redispatched_at` is when the
    # watchdog last sent its lost parts again, `alerted_at` when people were told that it failed.
    """
    ALTER TABLE tasks
        ADD COLUMN engine text,
        ADD COLUMN next_retry_at timestamptz,
        ADD COLUMN retry_message text,
        ADD COLUMN retry_attempt integer,
        ADD COLUMN retry_attempts integer,
        ADD COLUMN replays integer NOT NULL DEFAULT 0,
        ADD COLUMN redispatched_at timestamptz,
        ADD COLUMN alerted_at timestamptz
    """,
    # Until `dispatched_at` is set, a row is the outbox of what follows from its status: an upload, a cancellation, a
    # replay.
    "DROP INDEX tasks_undispatched",
    "CREATE INDEX tasks_undispatched ON tasks (updated_at) WHERE dispatched_at IS NULL",
    # People have been told of what failed before there were alerts.
    "UPDATE tasks SET alerted_at = completed_at WHERE status = 'failed'",
    "UPDATE tasks SET dispatched_at = updated_at WHERE dispatched_at IS NULL AND status <> 'pending'",
    "CREATE INDEX tasks_unalerted ON tasks (completed_at) WHERE status = 'failed' AND alerted_at IS NULL",
    "CREATE INDEX tasks_unfinished ON tasks (updated_at) WHERE status IN ('pending', 'running')",
    # A unit is done, failed, or open: replayed, and not yet heard of again. `run` counts its replays, `parts` is what a
    # shard was cut into, and `dead_letter_*` say where the record of a failed unit lies.
    """
    ALTER TABLE task_units
        ADD COLUMN state text NOT NULL DEFAULT 'done' CHECK (state IN ('done', 'failed', 'open')),
        ADD COLUMN run integer NOT NULL DEFAULT 0,
        ADD COLUMN parts integer,
        ADD COLUMN dead_letter_topic text,
        ADD COLUMN dead_letter_partition integer,
        ADD COLUMN dead_letter_offset bigint
    """,
    "ALTER TABLE task_units RENAME COLUMN stage TO step",
    "UPDATE task_units SET state = 'failed' WHERE NOT done",
    "ALTER TABLE task_units ALTER COLUMN state DROP DEFAULT, DROP COLUMN done",
    # Every retry of a unit that was ever scheduled; only rows really inserted are counted.
    """
    CREATE TABLE task_retries (
        task_id uuid NOT NULL REFERENCES tasks ON DELETE CASCADE,
        step text NOT NULL CHECK (step IN ('plan', 'parse', 'embed', 'index')),
        shard integer NOT NULL,
        part integer NOT NULL,
        run integer NOT NULL,
        attempt integer NOT NULL,
        attempts integer NOT NULL,
        parts integer,
        code text NOT NULL,
        message text NOT NULL,
        failed_at timestamptz NOT NULL,
        retry_at timestamptz NOT NULL,
        PRIMARY KEY (task_id, step, shard, part, run, attempt)
    )
    """,
    # A task's chunks are its own: they go with it, whatever other tasks have of the same document.
    "CREATE INDEX chunks_task ON chunks (task_id)",
)

DOWN = (
    "DROP INDEX chunks_task",
    "DROP TABLE task_retries",
    "ALTER TABLE task_units ADD COLUMN done boolean",
    "DELETE FROM task_units WHERE state = 'open'",
    "UPDATE task_units SET done = state = 'done'",
    "ALTER TABLE task_units RENAME COLUMN step TO stage",
    """
    ALTER TABLE task_units ALTER COLUMN done SET NOT NULL, DROP COLUMN state, DROP COLUMN run, DROP COLUMN parts,
        DROP COLUMN dead_letter_topic, DROP COLUMN dead_letter_partition, DROP COLUMN dead_letter_offset
    """,
    "DROP INDEX tasks_unfinished",
    "DROP INDEX tasks_unalerted",
    "DROP INDEX tasks_undispatched",
    "CREATE INDEX tasks_undispatched ON tasks (created_at) WHERE dispatched_at IS NULL AND status = 'pending'",
    """
    ALTER TABLE tasks DROP COLUMN engine, DROP COLUMN next_retry_at, DROP COLUMN retry_message,
        DROP COLUMN retry_attempt, DROP COLUMN retry_attempts, DROP COLUMN replays, DROP COLUMN redispatched_at,
        DROP COLUMN alerted_at
    """,
)


def upgrade() -> None:
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
