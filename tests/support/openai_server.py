"""A server that speaks OpenAI's embeddings protocol on a real port, and fails in its ways on demand."""

import asyncio
import base64
import hashlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum, auto
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

KEY = "sk-test-0123456789abcdef"
RETRY_AFTER = timedelta(seconds=17)


class Fault(StrEnum):
    """How the next request fails."""

    RATE_LIMITED = auto()
    RATE_LIMITED_UNTIL = auto()
    RATE_LIMITED_SILENTLY = auto()
    NO_QUOTA = auto()
    UNAUTHORIZED = auto()
    FORBIDDEN = auto()
    UNKNOWN_MODEL = auto()
    INVALID = auto()
    BROKEN = auto()
    OVERLOADED = auto()
    HANG = auto()
    TRUNCATED = auto()
    NO_JSON = auto()
    SHORT_BODY = auto()
    RESET = auto()
    TOO_FEW = auto()
    WRONG_INDEX = auto()
    WRONG_DIMENSION = auto()
    NOT_A_NUMBER = auto()
    BAD_BASE64 = auto()


class OpenAIServer:
    """The server, in a thread of its own, from `with` to its end.

    Attributes
    ----------
    faults
        What the next requests fail with, one each; then all is well again.
    spoilt
        By a piece of text, what requests for texts that hold it fail with, one each; None is for one that succeeds.
    retry_after
        What a refusal says of when to come back.
    requests
        The bodies of all requests to /embeddings, in their order.
    dimension
        Of the vectors, unless a request asks for another one.
    base64, dimensions
        Whether the server knows these options: "yes", "ignored" or "refused".
    """

    def __init__(self, *, dimension: int = 1536, base64: str = "yes", dimensions: str = "yes") -> None:
        self.faults: deque[Fault] = deque()
        self.spoilt: dict[str, Iterator[Fault | None]] = {}
        self.retry_after = RETRY_AFTER
        self.asked_at: list[float] = []
        self.requests: list[dict[str, Any]] = []
        self.dimension = dimension
        self.base64 = base64
        self.dimensions = dimensions
        self.busy = 0
        self.busiest = 0
        self.entered = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/v1/embeddings", self._embeddings, methods=["POST"])])
        # Within this time, requests that hang are abandoned at the end.
        config = uvicorn.Config(
            app, http=_resettable(self), lifespan="off", log_config=None, timeout_graceful_shutdown=1, access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def asked(self, piece: str) -> list[float]:
        """Return when texts that hold a piece were asked for, in seconds that only ever grow."""
        times = zip(self.asked_at, self.requests, strict=False)
        return [at for at, body in times if any(piece in text for text in body["input"])]

    async def _embeddings(self, request: Request) -> Response:
        body = await request.json()
        self.asked_at.append(time.monotonic())
        self.requests.append(body)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            # Lets requests that came at the same time be seen together.
            await asyncio.sleep(0.01)
            return await self._answer(request, body)
        finally:
            self.busy -= 1

    async def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _refusal(401, "Incorrect API key provided", "invalid_api_key")
        fault = self._next_fault(body)
        refusal = self._refused_option(body) or (self._refusals(request).get(fault) if fault else None)
        if refusal is not None:
            return refusal
        if fault is Fault.HANG:
            self.entered.set()
            await request.receive()  # which is that the client has gone
        answer = self._vectors(body, fault)
        if fault is Fault.TRUNCATED:
            return Response(bytes(answer.body)[:-40], media_type="application/json")
        if fault is Fault.SHORT_BODY:
            return Response(bytes(answer.body)[:-40], headers={"content-length": str(len(answer.body))})
        return answer

    def _next_fault(self, body: dict[str, Any]) -> Fault | None:
        for piece, faults in self.spoilt.items():
            if any(piece in text for text in body["input"]):
                return next(faults, None)
        return self.faults.popleft() if self.faults else None

    def _refused_option(self, body: dict[str, Any]) -> Response | None:
        if self.base64 == "refused" and body.get("encoding_format") == "base64":
            return _refusal(400, "encoding_format must be float")
        if self.dimensions == "refused" and "dimensions" in body:
            return _refusal(422, "Model does not support matryoshka representation")
        return None

    def _vectors(self, body: dict[str, Any], fault: Fault | None) -> Response:
        dimension = self.dimension if self.dimensions == "ignored" else body.get("dimensions", self.dimension)
        dimension += fault is Fault.WRONG_DIMENSION
        inputs = body["input"][1:] if fault is Fault.TOO_FEW else body["input"]
        packed = self.base64 == "yes" and body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": n, "embedding": _encoded(text, dimension, packed=packed)}
            for n, text in enumerate(inputs)
        ]
        if fault is Fault.WRONG_INDEX:
            data[-1]["index"] = 0
        if fault is Fault.BAD_BASE64:
            data[-1]["embedding"] = "?"
        if fault is Fault.NOT_A_NUMBER:
            data[-1]["embedding"] = base64.b64encode(struct.pack("<f", float("nan")) * dimension).decode()
        tokens = sum(len(text.split()) for text in inputs)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        # Nobody promises an order.
        return JSONResponse({"object": "list", "data": data[::-1], "model": body["model"], "usage": usage})

    def _refusals(self, request: Request) -> dict[Fault, Response]:
        at = format_datetime(datetime.now(UTC) + self.retry_after, usegmt=True)
        seconds = str(int(self.retry_after.total_seconds()))
        return {
            Fault.RATE_LIMITED: _refusal(429, "Rate limit reached", "rate_limit_exceeded", {"retry-after": seconds}),
            Fault.RATE_LIMITED_UNTIL: _refusal(429, "Rate limit reached", "rate_limit_exceeded", {"retry-after": at}),
            Fault.RATE_LIMITED_SILENTLY: _refusal(429, "Rate limit reached", None, {"retry-after": "soon"}),
            Fault.NO_QUOTA: _refusal(429, "You exceeded your current quota", "insufficient_quota"),
            # Servers do repeat what they were given.
            Fault.UNAUTHORIZED: _refusal(
                401, f"Bad credentials: {request.headers['authorization']}", "invalid_api_key"
            ),
            Fault.FORBIDDEN: _refusal(403, "Country not supported"),
            Fault.UNKNOWN_MODEL: _refusal(404, "The model does not exist", "model_not_found"),
            Fault.INVALID: _refusal(400, "This model's maximum context length is 8192 tokens"),
            Fault.BROKEN: _refusal(500, "The server had an error"),
            Fault.OVERLOADED: _refusal(503, "Overloaded", None, {"retry-after": seconds}),
            Fault.NO_JSON: Response("<html>a proxy's page</html>", media_type="text/html"),
        }


def vector_of(text: str, dimension: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the vector that the server gives to a text, not of length 1."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)


def _encoded(text: str, dimension: int, *, packed: bool) -> str | list[float]:
    vector = vector_of(text, dimension)
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if packed else vector.tolist()


def _refusal(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def _resettable(server: OpenAIServer) -> type[H11Protocol]:
    class Resettable(H11Protocol):
        """Ends the connection with a TCP reset, before any answer, where that is the next fault."""

        @override
        def data_received(self, data: bytes) -> None:
            if server.faults and server.faults[0] is Fault.RESET:
                server.faults.popleft()
                connection = self.transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.transport.abort()
                return
            super().data_received(data)

    return Resettable
