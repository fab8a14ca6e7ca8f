"""The indexer: vectors in, a searchable index out.

In: `chunks.embedded`, `documents.completed` and `task.control`. Out: the vector store, `task.events`.
"""

from functools import partial

from faststream.asgi import AsgiFastStream

from services.indexer import handlers
from services.indexer.config import IndexerSettings
from services.indexer.context import Context
from shared.worker import create_worker


def create_app(settings: IndexerSettings | None = None) -> AsgiFastStream:
    """Build the indexer, configured from the environment unless `settings` are given."""
    settings = settings or IndexerSettings()
    return create_worker("indexer", settings, handlers.TOPICS, partial(Context.open, settings), handlers.register)
