"""What flows into the parser."""

from services.parser.context import Context
from shared.broker import Broker, subscribe
from shared.events import DocumentSubmitted, PagesRequested
from shared.stage import StageRunner
from shared.subscription import Subscription
from shared.topics import DOCUMENTS_SUBMITTED, PAGES_REQUESTED

TOPICS = (DOCUMENTS_SUBMITTED, PAGES_REQUESTED)

BATCH = 8
"""Records of one batch: a few for each child process, so that none idles while another ends its last shard."""


def register(broker: Broker, context: Context) -> list[Subscription]:
    """Subscribe both steps; they share the child processes but not their batches."""
    plan = StageRunner(DOCUMENTS_SUBMITTED, DocumentSubmitted, context.parser.plan, context.runtime)
    extract = StageRunner(PAGES_REQUESTED, PagesRequested, context.parser.extract, context.runtime)
    return [
        subscribe(broker, DOCUMENTS_SUBMITTED, plan, breaker=plan.breaker, max_records=BATCH),
        subscribe(broker, PAGES_REQUESTED, extract, breaker=extract.breaker, max_records=BATCH),
    ]
