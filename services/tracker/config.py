"""The tracker's settings."""

from datetime import timedelta
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from services.tracker.alerts.channels import scheme_of
from services.tracker.alerts.courier import open_channel
from shared.settings import BlobSettings, DatabaseSettings, Seconds
from shared.worker import WorkerSettings


class TrackerSettings(WorkerSettings, DatabaseSettings, BlobSettings):
    """What the tracker needs to know."""

    task_timeout: Seconds = Field(
        timedelta(minutes=15),
        title="Task timeout",
        gt=timedelta(0),
        description="Seconds of silence after which a task's lost parts are sent again; after as many more it fails.",
    )
    cleanup_days: int = Field(
        30, ge=1, title="Keep tasks", description="Days after which a task that is over is deleted with its blob."
    )
    alert_urls: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        title="Alert channels",
        description="Apprise URLs, separated by white space, that are told of failed tasks and stages at a standstill.",
    )

    @field_validator("alert_urls", mode="before")
    @classmethod
    def _separated_by_white_space(cls, value: object) -> object:
        return value.split() if isinstance(value, str) else value  # a comma may be part of a URL

    @field_validator("alert_urls")
    @classmethod
    def _understood(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, url in enumerate(urls, start=1):
            if open_channel(url.get_secret_value()) is None:
                raise ValueError(f"URL {number} ({scheme_of(url.get_secret_value())}) is none that Apprise understands")
        return urls
