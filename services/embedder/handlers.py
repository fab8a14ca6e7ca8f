"""What flows into the embedder."""

from services.embedder.context import Context
from shared.broker import Broker, subscribe
from shared.events import ChunksExtracted
from shared.stage import StageRunner
from shared.subscription import Subscription
from shared.topics import CHUNKS_EXTRACTED

TOPICS = (CHUNKS_EXTRACTED,)

BATCH = 16
"""Parts of one batch: up to 1,024 chunks, a few full calls to the model; more would delay the first one's commit."""


def register(broker: Broker, context: Context) -> list[Subscription]:
    """Subscribe to extracted parts."""
    embed = StageRunner(CHUNKS_EXTRACTED, ChunksExtracted, context.parts.embed, context.runtime)
    return [subscribe(broker, CHUNKS_EXTRACTED, embed, breaker=embed.breaker, max_records=BATCH)]
