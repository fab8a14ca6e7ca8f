"""What flows into the tracker."""

from services.tracker.context import Context
from services.tracker.events import EventFolder
from shared.broker import Broker, subscribe
from shared.subscription import Subscription
from shared.topics import TASK_EVENTS

TOPICS = (TASK_EVENTS,)

BATCH = 500
"""Events of one transaction: large enough to share its commit, small enough to keep updates prompt."""


def register(broker: Broker, context: Context) -> list[Subscription]:
    """Subscribe to the events of all stages."""
    folder = EventFolder(context.store, context.runtime.publisher, context.runtime.dead_letter_cap)
    return [subscribe(broker, TASK_EVENTS, folder, breaker=folder.breaker, max_records=BATCH)]
