"""Gives the chunks of a part their vectors, many parts in one call to the model."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from shared.batching import MicroBatcher
from shared.clock import now
from shared.embedding import Embedder
from shared.events import ChunksEmbedded, ChunksExtracted, PartEmbedded
from shared.kafka import Outgoing
from shared.topics import CHUNKS_EMBEDDED, TASK_EVENTS

Embedded = tuple[NDArray[np.float32], int]
"""A chunk's vector, shape (dimension,), and its share of the tokens of the call that made it."""


class PartEmbedder:
    """Embeds parts.

    Parameters
    ----------
    batch
        Most chunks of one call; those of all parts in flight are gathered up to it.
    concurrency
        Most calls at the same time.
    """

    def __init__(self, embedder: Embedder, *, batch: int, concurrency: int) -> None:
        self._embedder = embedder
        self._batcher = MicroBatcher(self._embed, max_items=batch, max_concurrency=concurrency)

    async def embed(self, event: ChunksExtracted) -> list[Outgoing]:
        """Embed one part.

        Raises
        ------
        TransientError
            The provider is away, slow or wants fewer requests.
        PermanentError
            The provider refuses these chunks or answers nonsense.
        """
        started = now()
        embedded = await self._batcher.submit([chunk.text for chunk in event.chunks])
        vectors = np.stack([vector for vector, _ in embedded])
        part = ChunksEmbedded.of(event, model=self._embedder.model, vectors=vectors)
        report = PartEmbedded(
            task_id=event.task_id,
            shard=event.shard,
            part=event.part,
            weight=event.weight,
            tokens=sum(tokens for _, tokens in embedded),
            model=part.model,
            dimension=part.dimension,
            started_at=started,
            finished_at=now(),
        )
        return [
            Outgoing.of(CHUNKS_EMBEDDED.name, f"{event.task_id}:{event.shard}:{event.part}", part),
            Outgoing.of(TASK_EVENTS.name, str(event.task_id), report),
        ]

    async def aclose(self) -> None:
        """Let go of what waits."""
        await self._batcher.aclose()

    async def _embed(self, texts: Sequence[str]) -> list[Embedded]:
        embeddings = await self._embedder.embed(texts)
        shares = token_shares(embeddings.tokens, [len(text) for text in texts])
        return list(zip(embeddings.vectors, shares, strict=True))


def token_shares(tokens: int, lengths: Sequence[int]) -> list[int]:
    """Share the tokens of one call among its texts by their length; the shares sum up to `tokens`."""
    total = sum(lengths) or 1
    bounds = [tokens * length // total for length in accumulate(lengths, initial=0)]
    return [after - before for before, after in pairwise(bounds)]
