"""Text to vectors, behind one port: a model in this process, or a server that speaks OpenAI's protocol."""

from shared.embedding.catalog import embedding_dimension, model_name
from shared.embedding.port import Embedder, EmbedderConfigError, Embeddings
from shared.settings import EmbeddingSettings

__all__ = ["Embedder", "EmbedderConfigError", "Embeddings", "create_embedder", "embedding_dimension", "model_name"]


def create_embedder(settings: EmbeddingSettings) -> Embedder:
    """Make the configured embedder; a local model is loaded here, which takes a fraction of a second.

    Raises
    ------
    EmbedderConfigError
        The settings contradict each other or this installation.
    """
    if settings.embedder == "openai":
        # Imported late: the client would cost a local embedder 0.3 s and 16 MB for nothing.
        from shared.embedding.openai import OpenAIEmbedder  # noqa: PLC0415 - see above

        return OpenAIEmbedder(settings)
    from shared.embedding.local import LocalEmbedder, load_model  # noqa: PLC0415 - see above

    return LocalEmbedder(load_model(settings))
