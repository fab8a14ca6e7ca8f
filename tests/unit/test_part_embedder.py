import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedder.embed import PartEmbedder, token_shares
from shared.clock import now
from shared.embedding import Embeddings
from shared.errors import EmbeddingRejectedError, RateLimitedError
from shared.events import ChunksEmbedded, PartEmbedded
from tests.support.builders import TASK, extracted, patience


class Lengths:
    """An embedder whose vectors tell a text's length; it refuses "bad" and is busy with "busy"."""

    model = "lengths"
    dimension = 2

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        self.calls.append(list(texts))
        await asyncio.sleep(0)
        if "bad" in texts:
            raise EmbeddingRejectedError("a bad text")
        if "busy" in texts:
            raise RateLimitedError("slow down")
        vectors = np.array([[len(text), 1] for text in texts], dtype=np.float32)
        return Embeddings(vectors, tokens=sum(map(len, texts)))

    async def aclose(self) -> None:
        """Hold nothing."""


@pytest.fixture
def model() -> Lengths:
    return Lengths()


@pytest.fixture
async def parts(model: Lengths) -> AsyncIterator[PartEmbedder]:
    embedder = PartEmbedder(model, batch=4, concurrency=1)
    yield embedder
    await embedder.aclose()


async def test_a_part_leaves_with_its_vectors_and_is_reported(parts: PartEmbedder) -> None:
    begun = now()
    source = extracted(["a", "bbb"], shard=2, part=3, parts=9, weight=1500)
    part, report = await parts.embed(source)
    assert (part.topic, part.key) == ("chunks.embedded", f"{TASK}:2:3".encode())
    joined = ChunksEmbedded.model_validate_json(part.value or b"")
    assert joined.matrix().tolist() == [[1, 1], [3, 1]]
    assert (joined.model, joined.dimension, joined.chunks) == ("lengths", 2, source.chunks)
    assert (joined.shard, joined.part, joined.parts) == (2, 3, 9)
    assert (report.topic, report.key) == ("task.events", str(TASK).encode())
    done = PartEmbedded.model_validate_json(report.value or b"")
    assert (done.task_id, done.shard, done.part, done.weight) == (TASK, 2, 3, 1500)
    assert (done.tokens, done.model, done.dimension) == (4, "lengths", 2)
    assert begun <= done.started_at <= done.finished_at <= now()


async def test_parts_at_the_same_time_share_calls_of_the_configured_size(parts: PartEmbedder, model: Lengths) -> None:
    sources = [extracted(["a" * n, "b" * n, "c" * n], part=n) for n in (1, 2, 3, 4)]
    async with patience():
        outputs = await asyncio.gather(*map(parts.embed, sources))
    assert [len(texts) for texts in model.calls] == [4, 4, 4]
    for n, (part, report) in enumerate(outputs, 1):
        joined = ChunksEmbedded.model_validate_json(part.value or b"")
        assert joined.matrix().tolist() == [[n, 1]] * 3
        assert PartEmbedded.model_validate_json(report.value or b"").tokens == 3 * n


async def test_a_part_that_is_refused_hurts_no_other(parts: PartEmbedder) -> None:
    sources = [extracted(["good"], part=0), extracted(["bad"], part=1), extracted(["fine"], part=2)]
    async with patience():
        good, bad, fine = await asyncio.gather(*map(parts.embed, sources), return_exceptions=True)
    assert isinstance(bad, EmbeddingRejectedError)
    assert not isinstance(good, BaseException)
    assert not isinstance(fine, BaseException)


async def test_a_busy_provider_is_told_to_the_runner(parts: PartEmbedder) -> None:
    with pytest.raises(RateLimitedError, match="slow down"):
        await parts.embed(extracted(["busy"]))


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_shares_of_tokens_sum_up_and_follow_the_lengths(tokens: int, lengths: list[int]) -> None:
    shares = token_shares(tokens, lengths)
    assert len(shares) == len(lengths)
    if sum(lengths):
        assert sum(shares) == tokens
    for share, length in zip(shares, lengths, strict=True):
        assert abs(share - tokens * length / (sum(lengths) or 1)) <= 1
