"""Brings the schema up to date with alembic, from plain SQL statements in `versions/`."""

from pathlib import Path

from alembic import command
from alembic.config import Config

from shared.settings import DatabaseSettings


def migrate_schema(settings: DatabaseSettings) -> None:
    """Apply all migrations that this database lacks. Blocking; not for an event loop's thread.

    Two migrations at the same time are safe: an advisory lock makes one wait for the other.
    """
    command.upgrade(_config(settings), "head")


def _config(settings: DatabaseSettings) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["database_url"] = settings.database_url.get_secret_value()
    return config
