"""`paperlane migrate`: topics, database schema and vector index."""

import asyncio

from shared.database.migrations import migrate_schema
from shared.embedding import embedding_dimension, model_name
from shared.settings import EmbeddingSettings, KafkaSettings, VectorSettings
from shared.topics import create_topics
from shared.vectors import create_vector_store


class MigrateSettings(KafkaSettings, VectorSettings, EmbeddingSettings):
    """What a migration needs to know."""


def migrate() -> None:
    """Create the topics, the schema and the vector index that are missing. Safe to run again, and at once by many."""
    settings = MigrateSettings()
    migrate_schema(settings)
    asyncio.run(_migrate(settings))


async def _migrate(settings: MigrateSettings) -> None:
    await create_topics(settings)
    store = await create_vector_store(settings, model_name(settings), embedding_dimension(settings))
    try:
        await store.prepare()
    finally:
        await store.aclose()
