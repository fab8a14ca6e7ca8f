"""The tracker's settings."""

from pydantic import Field

from shared.settings import BlobSettings, DatabaseSettings
from shared.worker import WorkerSettings


class TrackerSettings(WorkerSettings, DatabaseSettings, BlobSettings):
    """What the tracker needs to know."""

    cleanup_days: int = Field(
        30, ge=1, title="Keep tasks", description="Days after which a task that is over is deleted with its blob."
    )
