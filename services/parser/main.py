"""The parser: PDFs in, chunks of text out.

In: `documents.submitted`, `pages.requested`, `task.control`. Out: `pages.requested`, `chunks.extracted`, `task.events`.
"""

from functools import partial

from faststream.asgi import AsgiFastStream

from services.parser import handlers
from services.parser.config import ParserSettings
from services.parser.context import Context
from shared.worker import create_worker


def create_app(settings: ParserSettings | None = None) -> AsgiFastStream:
    """Build the parser, configured from the environment unless `settings` are given."""
    settings = settings or ParserSettings()
    return create_worker("parser", settings, handlers.TOPICS, partial(Context.open, settings), handlers.register)
