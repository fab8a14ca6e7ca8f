"""The embedder: chunks in, vectors out.

In: `chunks.extracted`, `task.control`. Out: `chunks.embedded`, `task.events`.
"""

from functools import partial

from faststream.asgi import AsgiFastStream

from services.embedder import handlers
from services.embedder.config import EmbedderSettings
from services.embedder.context import Context
from shared.worker import create_worker


def create_app(settings: EmbedderSettings | None = None) -> AsgiFastStream:
    """Build the embedder, configured from the environment unless `settings` are given."""
    settings = settings or EmbedderSettings()
    return create_worker("embedder", settings, handlers.TOPICS, partial(Context.open, settings), handlers.register)
