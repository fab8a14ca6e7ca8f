"""What flows into the indexer."""

from services.indexer.context import Context
from shared.broker import Broker, Membership, subscribe
from shared.events import ChunksEmbedded, DocumentCompleted
from shared.stage import StageRunner
from shared.topics import CHUNKS_EMBEDDED, DOCUMENTS_COMPLETED

TOPICS = (CHUNKS_EMBEDDED, DOCUMENTS_COMPLETED)

BATCH = 16
"""Parts of one batch: up to 1,024 chunks, two full writes at the same time."""


def register(broker: Broker, context: Context) -> list[Membership]:
    """Subscribe to embedded parts and to completed documents."""
    delays = context.settings.retry_delays
    index = StageRunner(CHUNKS_EMBEDDED, ChunksEmbedded, context.parts.index, context.publisher, delays=delays)
    retire = StageRunner(DOCUMENTS_COMPLETED, DocumentCompleted, context.parts.retire, context.publisher, delays=delays)
    return [
        subscribe(broker, CHUNKS_EMBEDDED, index, max_records=BATCH),
        subscribe(broker, DOCUMENTS_COMPLETED, retire, max_records=BATCH),
    ]
