"""What flows into the parser."""

from services.parser.context import Context
from shared.broker import Broker, Membership, subscribe
from shared.events import DocumentSubmitted, PagesRequested
from shared.stage import StageRunner
from shared.topics import DOCUMENTS_SUBMITTED, PAGES_REQUESTED

TOPICS = (DOCUMENTS_SUBMITTED, PAGES_REQUESTED)

BATCH = 8
"""Records of one batch: a few for each child process, so that none idles while another ends its last shard."""


def register(broker: Broker, context: Context) -> list[Membership]:
    """Subscribe both steps; they share the child processes but not their batches."""
    delays = context.settings.retry_delays
    plan = StageRunner(DOCUMENTS_SUBMITTED, DocumentSubmitted, context.parser.plan, context.publisher, delays=delays)
    extract = StageRunner(PAGES_REQUESTED, PagesRequested, context.parser.extract, context.publisher, delays=delays)
    return [
        subscribe(broker, DOCUMENTS_SUBMITTED, plan, max_records=BATCH),
        subscribe(broker, PAGES_REQUESTED, extract, max_records=BATCH),
    ]
