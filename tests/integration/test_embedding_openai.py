import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import numpy as np
import pytest
from pydantic import SecretStr

from shared.embedding import Embedder, create_embedder
from shared.embedding import openai as provider
from shared.errors import (
    DependencyUnavailableError,
    EmbeddingMismatchError,
    EmbeddingRejectedError,
    PaperlaneError,
    RateLimitedError,
)
from shared.settings import EmbeddingSettings
from tests.support.openai_server import KEY, RETRY_AFTER, Fault, OpenAIServer, vector_of

SHORT_TIMEOUT = timedelta(milliseconds=400)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


@asynccontextmanager
async def client(
    url: str, *, model: str | None = None, dim: int | None = None, key: str = KEY, patience: timedelta | None = None
) -> AsyncIterator[Embedder]:
    embedder = create_embedder(
        EmbeddingSettings(
            embedder="openai",
            embedding_model=model,
            embedding_dim=dim,
            openai_api_key=SecretStr(key),
            openai_base_url=url,
            embedding_timeout=patience or timedelta(seconds=20),
        )
    )
    try:
        yield embedder
    finally:
        await embedder.aclose()


def unit(text: str, dimension: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    vector = vector_of(text, dimension)
    return vector / np.linalg.norm(vector)


async def test_each_text_gets_its_vector_at_length_one(server: OpenAIServer) -> None:
    async with client(server.url) as embedder:
        result = await embedder.embed(["first text", "", "second", " \n"])
    nothing = np.zeros(1536, dtype=np.float32)
    expected = np.stack([unit("first text", 1536), nothing, unit("second", 1536), nothing])
    np.testing.assert_allclose(result.vectors, expected, atol=1e-6)
    assert result.tokens == 3
    assert server.requests == [
        {"input": ["first text", "second"], "model": "text-embedding-3-small", "encoding_format": "base64"}
    ]


async def test_without_texts_nobody_is_asked(server: OpenAIServer) -> None:
    async with client(server.url) as embedder:
        assert (await embedder.embed([])).vectors.shape == (0, 1536)
        assert (await embedder.embed([" "])).tokens == 0
    assert server.requests == []


async def test_a_dimension_is_asked_for_only_where_it_is_set(server: OpenAIServer) -> None:
    async with client(server.url, dim=64) as embedder:
        result = await embedder.embed(["text"])
    np.testing.assert_allclose(result.vectors, [unit("text", 64)], atol=1e-6)
    assert server.requests[0]["dimensions"] == 64


async def test_the_old_model_is_never_asked_for_a_dimension(server: OpenAIServer) -> None:
    async with client(server.url, model="text-embedding-ada-002", dim=1536) as embedder:
        await embedder.embed(["text"])
    assert "dimensions" not in server.requests[0]


@pytest.mark.parametrize("base64", ["ignored", "refused"])
@pytest.mark.parametrize("dimensions", ["ignored", "refused"])
async def test_a_server_that_knows_less_is_met_where_it_is(base64: str, dimensions: str) -> None:
    with OpenAIServer(dimension=32, base64=base64, dimensions=dimensions) as server:
        async with client(server.url, model="nomic-embed-text", dim=32) as embedder:
            many = await asyncio.gather(*(embedder.embed([f"text {n}"]) for n in range(6)))
            asked = len(server.requests)
            again = await embedder.embed(["text 0"])
    for n, result in enumerate(many):
        np.testing.assert_allclose(result.vectors, [unit(f"text {n}", 32)], atol=1e-6)
    np.testing.assert_array_equal(again.vectors, many[0].vectors)
    assert len(server.requests) == asked + 1  # what is refused once is not sent again


async def test_many_texts_go_in_requests_within_the_limits(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "MAX_INPUTS", 7)
    monkeypatch.setattr(provider, "MAX_TOKENS", 100)
    texts = [f"text {n} " + "x" * (n % 5 * 30) for n in range(40)]
    texts += ["ü" * 500, *(f"end {n}" for n in range(10))]
    async with client(server.url, dim=8) as embedder:
        result = await embedder.embed(texts)
    np.testing.assert_allclose(result.vectors, [unit(text, 8) for text in texts], atol=1e-6)
    sent = [request["input"] for request in server.requests]
    assert sorted(text for texts in sent for text in texts) == sorted(texts)
    assert max(map(len, sent)) == 7
    assert all(len(part) == 1 or sum(len(text.encode()) for text in part) <= 200 for part in sent)
    assert 1 < server.busiest <= provider.MAX_REQUESTS


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault.RATE_LIMITED_SILENTLY, RateLimitedError, "answered 429: Rate limit reached"),
        (Fault.NO_QUOTA, RateLimitedError, "exceeded your current quota"),
        (Fault.UNAUTHORIZED, EmbeddingRejectedError, "answered 401: Bad credentials"),
        (Fault.FORBIDDEN, EmbeddingRejectedError, "answered 403: Country not supported"),
        (Fault.UNKNOWN_MODEL, EmbeddingRejectedError, "answered 404: The model does not exist"),
        (Fault.INVALID, EmbeddingRejectedError, "answered 400: This model's maximum context length"),
        (Fault.BROKEN, DependencyUnavailableError, "answered 500: The server had an error"),
        (Fault.TRUNCATED, DependencyUnavailableError, "unreadable answer: Invalid JSON"),
        (Fault.NO_JSON, DependencyUnavailableError, "unreadable answer: Invalid JSON"),
        (Fault.BAD_BASE64, DependencyUnavailableError, "unreadable answer"),
        (Fault.SHORT_BODY, DependencyUnavailableError, "no answer from 127.0.0.1"),
        (Fault.RESET, DependencyUnavailableError, "no answer from 127.0.0.1"),
        (Fault.TOO_FEW, EmbeddingMismatchError, "asked for 2 vectors, got 1"),
        (Fault.WRONG_INDEX, EmbeddingMismatchError, "asked for 2 vectors, got 2 that do not answer"),
        (Fault.WRONG_DIMENSION, EmbeddingMismatchError, "have 1537 dimensions, expected 1536: see EMBEDDING_DIM"),
        (Fault.NOT_A_NUMBER, EmbeddingMismatchError, "not finite"),
    ],
)
async def test_failures_say_what_happened_and_whether_to_try_again(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture, fault: Fault, kind: type[PaperlaneError], words: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults.append(fault)
    async with client(server.url) as embedder:
        with pytest.raises(kind, match=words) as caught:
            await embedder.embed(["one", "two"])
        assert getattr(caught.value, "retry_after", None) is None
        told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(embedder) + repr(vars(embedder))
        assert KEY not in told
        assert len(server.requests) <= 1  # nothing is tried again here
        assert (await embedder.embed(["one", "two"])).vectors.shape == (2, 1536)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.RATE_LIMITED, RateLimitedError),
        (Fault.RATE_LIMITED_UNTIL, RateLimitedError),
        (Fault.OVERLOADED, DependencyUnavailableError),
    ],
)
async def test_the_time_that_a_server_asks_for_is_passed_on(
    server: OpenAIServer, fault: Fault, kind: type[PaperlaneError]
) -> None:
    server.faults.append(fault)
    async with client(server.url) as embedder:
        with pytest.raises(kind) as caught:
            await embedder.embed(["text"])
    assert isinstance(caught.value, RateLimitedError | DependencyUnavailableError)
    assert caught.value.retry_after is not None
    assert RETRY_AFTER - timedelta(seconds=2) <= caught.value.retry_after <= RETRY_AFTER


async def test_a_server_that_hangs_is_given_up(server: OpenAIServer) -> None:
    server.faults.append(Fault.HANG)
    async with client(server.url, patience=SHORT_TIMEOUT) as embedder:
        with pytest.raises(DependencyUnavailableError, match=r"within 0.4 s \(EMBEDDING_TIMEOUT\)"):
            await embedder.embed(["text"])


async def test_a_server_that_is_away_is_named() -> None:
    async with client("http://127.0.0.1:1/v1") as embedder:
        with pytest.raises(DependencyUnavailableError, match=r"no answer from 127.0.0.1"):
            await embedder.embed(["text"])


async def test_a_wrong_key_is_refused_and_not_shown(server: OpenAIServer) -> None:
    async with client(server.url, key="sk-wrong-42") as embedder:
        with pytest.raises(EmbeddingRejectedError, match="Incorrect API key") as caught:
            await embedder.embed(["text"])
    assert "sk-wrong-42" not in str(caught.value)


async def test_one_failure_ends_the_requests_beside_it(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "MAX_INPUTS", 1)
    server.faults.extend([Fault.HANG, Fault.BROKEN])
    async with client(server.url) as embedder:
        with pytest.raises(DependencyUnavailableError, match="answered 500"):
            await asyncio.wait_for(embedder.embed(["one", "two"]), timeout=10)
        assert (await embedder.embed(["three"])).vectors.shape == (1, 1536)
