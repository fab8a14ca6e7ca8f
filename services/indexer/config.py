"""The indexer's settings."""

from pydantic import Field

from shared.settings import EmbeddingSettings, VectorSettings
from shared.worker import WorkerSettings


class IndexerSettings(WorkerSettings, VectorSettings, EmbeddingSettings):
    """What the indexer needs to know; of the embedding only the model and its dimension, which name the index."""

    index_batch: int = Field(
        128, ge=1, title="Index batch", description="Most chunks that are written in one call to the vector store."
    )
    index_concurrency: int = Field(
        2, ge=1, title="Index concurrency", description="Most calls to the vector store at the same time."
    )
