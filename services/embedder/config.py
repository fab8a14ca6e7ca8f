"""The embedder's settings."""

from pydantic import Field

from shared.settings import EmbeddingSettings
from shared.worker import WorkerSettings


class EmbedderSettings(WorkerSettings, EmbeddingSettings):
    """What the embedder needs to know."""

    embedding_batch: int = Field(
        128, ge=1, le=2048, title="Embedding batch", description="Most chunks that are embedded in one call."
    )
    embedding_concurrency: int = Field(
        2, ge=1, title="Embedding concurrency", description="Most calls to the model or provider at the same time."
    )
