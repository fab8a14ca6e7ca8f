"""The tracker: the one authority on task state.

In: `task.events` of all stages. Out: the tables `tasks`, `task_units` and `task_retries`, `task.updates` for every
gateway, `documents.completed` for the indexer, what gateways could not publish, replayed and lost work, alerts.
"""

from functools import partial

from faststream.asgi import AsgiFastStream

from services.tracker import handlers
from services.tracker.config import TrackerSettings
from services.tracker.context import Context
from shared.worker import create_worker


def create_app(settings: TrackerSettings | None = None) -> AsgiFastStream:
    """Build the tracker, configured from the environment unless `settings` are given."""
    settings = settings or TrackerSettings()
    return create_worker("tracker", settings, handlers.TOPICS, partial(Context.open, settings), handlers.register)
