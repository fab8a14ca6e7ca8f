"""Embeddings from OpenAI, or any server that speaks its protocol."""

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import numpy as np
import openai
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from shared.embedding.catalog import OPENAI_DIMENSIONS, OPENAI_FIXED, embedding_dimension, model_name
from shared.embedding.port import EmbedderConfigError, Embeddings, normalised
from shared.errors import (
    DependencyUnavailableError,
    EmbeddingMismatchError,
    EmbeddingRejectedError,
    PaperlaneError,
    RateLimitedError,
)
from shared.settings import EmbeddingSettings

MAX_INPUTS = 2048
"""The most texts that OpenAI takes in one request."""

MAX_TOKENS = 250_000
"""The most tokens that go into one request, estimated; OpenAI's limit is 300,000."""

BYTES_PER_TOKEN = 2
"""A low estimate for UTF-8: about 4 in English and 2.3 in Chinese, so that a request stays below the limit."""

MAX_REQUESTS = 4
"""Requests of one process at the same time: enough to hide the round trip, few enough not to look like a flood."""

MAX_MESSAGE = 300
"""How much of a server's own words an error repeats."""


class _Item(BaseModel):
    index: int
    embedding: str | list[float]


class _Usage(BaseModel):
    total_tokens: int = 0


class _Answer(BaseModel):
    """What counts of an answer; read here rather than by the client, which lets broken answers pass."""

    data: list[_Item]
    usage: _Usage | None = None


class OpenAIEmbedder:
    """A client of one model on one server. It never retries: the stage's delayed retries do, without a busy slot.

    Parameters
    ----------
    settings
        With `openai_api_key`.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        if settings.openai_api_key is None:
            raise EmbedderConfigError("EMBEDDER=openai needs OPENAI_API_KEY (any text for a server that wants none)")
        self.model = model_name(settings)
        self.dimension = embedding_dimension(settings)
        self._key = settings.openai_api_key
        self._timeout = settings.embedding_timeout
        self._slots = asyncio.Semaphore(MAX_REQUESTS)
        self._options = _options(settings)
        self._client = openai.AsyncOpenAI(
            api_key=self._key.get_secret_value(),
            base_url=settings.openai_base_url,
            max_retries=0,
            timeout=self._timeout.total_seconds(),
        )

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts, in their order; blank ones, which servers refuse, become rows of zeros.

        Raises
        ------
        RateLimitedError
            The server wants fewer requests, or the account has no quota left.
        DependencyUnavailableError
            The server is away, slow, broken or unreadable.
        EmbeddingRejectedError
            The server refuses the key, the model or the texts.
        EmbeddingMismatchError
            The server answered with another count or dimension than was asked for.
        """
        rows = [row for row, text in enumerate(texts) if text.strip()]
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        answers = await self._embed_all(list(_cut([texts[row] for row in rows])))
        if answers:
            vectors[rows] = normalised(np.concatenate([answer.vectors for answer in answers]))
        return Embeddings(vectors, sum(answer.tokens for answer in answers))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _embed_all(self, requests: list[list[str]]) -> list[Embeddings]:
        """Run requests side by side; the first failure ends them all, for they are one unit of work."""
        tasks = [asyncio.ensure_future(self._embed_one(texts)) for texts in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _embed_one(self, texts: list[str]) -> Embeddings:
        async with self._slots:
            content = await self._send(texts)
        try:
            return _read(content, len(texts), self.dimension)
        except EmbeddingMismatchError as error:
            raise EmbeddingMismatchError(f"{self.model}: {error}") from None
        except ValueError as error:
            raise DependencyUnavailableError(f"{self.model}: unreadable answer: {_first_line(error)}") from None

    async def _send(self, texts: list[str]) -> bytes:
        """Return the raw answer; an option that the server does not know is left out from then on."""
        options = self._options
        while True:
            try:
                # The client's own timeout is one for each read, which a server that trickles never exceeds.
                async with asyncio.timeout(self._timeout.total_seconds()):
                    answer = await self._client.embeddings.with_raw_response.create(
                        input=texts, model=self.model, **options
                    )
            except TimeoutError:
                failure: PaperlaneError = self._too_slow()
            except openai.OpenAIError as error:
                fewer = self._without_refused(options, error)
                if fewer is not None:
                    self._options = options = fewer
                    continue
                failure = self._translated(error)
            else:
                return answer.content
            # Raised out here: the client's error would stay attached, and it holds the server's words unredacted.
            raise failure

    def _without_refused(self, options: dict[str, Any], error: openai.OpenAIError) -> dict[str, Any] | None:
        """Return the options without one that a compatible server complains about, if that is what it does."""
        if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return None
        complaint = error.message.lower()
        if options["encoding_format"] == "base64" and ("encoding_format" in complaint or "base64" in complaint):
            return options | {"encoding_format": "float"}
        # A server whose model has one dimension only; whether it is the right one shows in its answer.
        names_it = "dimension" in complaint or "matryoshka" in complaint
        if "dimensions" in options and names_it and self.model not in OPENAI_DIMENSIONS:
            return {name: value for name, value in options.items() if name != "dimensions"}
        return None

    def _translated(self, error: openai.OpenAIError) -> PaperlaneError:
        """Say in this project's words what a failure means, without the key."""
        if isinstance(error, openai.APITimeoutError):
            return self._too_slow()
        if not isinstance(error, openai.APIStatusError):
            reason = self._redacted(str(error.__cause__ or error) or type(error.__cause__).__name__)
            return DependencyUnavailableError(f"{self.model}: no answer from {self._client.base_url.host}: {reason}")
        message = f"{self.model}: the server answered {error.status_code}: {self._redacted(_words(error))}"
        wait = _retry_after(error.response.headers)
        if error.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            return RateLimitedError(message, retry_after=wait)
        if error.status_code in _TRY_AGAIN or error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return DependencyUnavailableError(message, retry_after=wait)
        return EmbeddingRejectedError(message)

    def _too_slow(self) -> DependencyUnavailableError:
        seconds = self._timeout.total_seconds()
        return DependencyUnavailableError(
            f"{self.model}: no answer from {self._client.base_url.host} within {seconds:g} s (EMBEDDING_TIMEOUT)"
        )

    def _redacted(self, text: str) -> str:
        return text.replace(self._key.get_secret_value(), "[key]")[:MAX_MESSAGE]


_TRY_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY})


def _options(settings: EmbeddingSettings) -> dict[str, Any]:
    """Return a request's optional fields: base64 is a quarter of the size of decimal floats, and faster to read."""
    options: dict[str, Any] = {"encoding_format": "base64"}
    if settings.embedding_dim is not None and model_name(settings) not in OPENAI_FIXED:
        options["dimensions"] = settings.embedding_dim
    return options


def _cut(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut texts into requests within the provider's limits; one that alone exceeds them goes alone."""
    request: list[str] = []
    room = MAX_TOKENS
    for text in texts:
        tokens = len(text.encode()) // BYTES_PER_TOKEN + 1
        if request and (len(request) == MAX_INPUTS or tokens > room):
            yield request
            request, room = [], MAX_TOKENS
        request.append(text)
        room -= tokens
    if request:
        yield request


def _read(content: bytes, count: int, dimension: int) -> Embeddings:
    """Return an answer's vectors as the server gave them; `ValueError` where it cannot be read."""
    answer = _Answer.model_validate_json(content)
    items = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(count)):
        raise EmbeddingMismatchError(f"asked for {count} vectors, got {len(items)} that do not answer these texts")
    rows = [_vector(item.embedding) for item in items]
    other = {len(row) for row in rows} - {dimension}
    if other:
        raise EmbeddingMismatchError(f"vectors have {min(other)} dimensions, expected {dimension}: see EMBEDDING_DIM")
    vectors = np.stack(rows)
    if not np.isfinite(vectors).all():
        raise EmbeddingMismatchError("vectors hold numbers that are not finite")
    return Embeddings(vectors, answer.usage.total_tokens if answer.usage else 0)


def _vector(embedding: str | list[float]) -> NDArray[np.float32]:
    """Decode a vector: base64 of little-endian float32, or a list where the server knows nothing else."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32, copy=False)
    return np.array(embedding, dtype=np.float32)


def _words(error: openai.APIStatusError) -> str:
    """Return the server's own words about a refusal."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return message if isinstance(message, str) else error.message


def _first_line(error: ValueError) -> str:
    """Return what is wrong, without the content that pydantic quotes."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error).partition("\n")[0][:MAX_MESSAGE]


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Read Retry-After, seconds or an HTTP date, or OpenAI's finer retry-after-ms; None where it says neither."""
    try:
        if "retry-after-ms" in headers:
            return max(timedelta(milliseconds=float(headers["retry-after-ms"])), timedelta(0))
        value = headers.get("retry-after", "")
        try:
            return max(timedelta(seconds=float(value)), timedelta(0))
        except ValueError:
            date = parsedate_to_datetime(value)
            zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max(zoned - datetime.now(UTC), timedelta(0))
    except (ValueError, OverflowError):
        return None
