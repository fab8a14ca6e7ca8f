"""Where vectors are kept and searched, behind one port."""

from shared.settings import VectorSettings
from shared.vectors.port import Hit, StoredChunk, VectorStore

__all__ = ["Hit", "StoredChunk", "VectorStore", "create_vector_store"]


async def create_vector_store(settings: VectorSettings, model: str, dimension: int) -> VectorStore:
    """Make the configured store for a model's vectors; it connects on first use.

    Parameters
    ----------
    settings
        Which store, and where it is.
    model, dimension
        See `shared.embedding.model_name` and `shared.embedding.embedding_dimension`.
    """
    from shared.vectors.pgvector import PgVectorStore  # noqa: PLC0415 - a store's client is imported where it is used

    return await PgVectorStore.open(settings, model, dimension)
