"""What flows into the indexer."""

from services.indexer.context import Context
from shared.broker import Broker, subscribe
from shared.events import ChunksEmbedded, DocumentCompleted, TaskCanceled
from shared.stage import StageRunner
from shared.subscription import Subscription
from shared.topics import CHUNKS_EMBEDDED, DOCUMENTS_COMPLETED, TASK_CONTROL

TOPICS = (CHUNKS_EMBEDDED, DOCUMENTS_COMPLETED, TASK_CONTROL)

BATCH = 16
"""Parts of one batch: up to 1,024 chunks, two full writes at the same time."""


def register(broker: Broker, context: Context) -> list[Subscription]:
    """Subscribe to embedded parts, to completed documents and to cancellations."""
    parts, runtime = context.parts, context.runtime
    index = StageRunner(CHUNKS_EMBEDDED, ChunksEmbedded, parts.index, runtime, undo=parts.discard)
    retire = StageRunner(DOCUMENTS_COMPLETED, DocumentCompleted, parts.retire, runtime)
    discard = StageRunner(TASK_CONTROL, TaskCanceled, parts.discard, runtime)
    return [
        subscribe(broker, CHUNKS_EMBEDDED, index, breaker=index.breaker, max_records=BATCH),
        subscribe(broker, DOCUMENTS_COMPLETED, retire, breaker=retire.breaker, max_records=BATCH),
        subscribe(broker, TASK_CONTROL, discard, breaker=discard.breaker, max_records=BATCH),
    ]
