"""What the two HTTP backends of the Gemini adapter have in common.

google-genai takes an HTTP session of the caller's. Ours differs from a plain one in that it tells failures
apart itself, before the SDK sees them: a status other than 200 is a :class:`HttpFailure`, whatever its body,
and a broken path is a :class:`PathFailure`. So no SDK version repeats a request behind our back (some repeat
a dropped POST on aiohttp whatever their retry options say), both backends fail alike, and no error object
carries the request with its key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

from llm_router.domain.kinds import FailureKind

__all__ = [
    "CONNECT_TIMEOUT",
    "KEEPALIVE",
    "ON_DISPATCH",
    "OPEN_STREAM",
    "REQUEST_BEGUN",
    "HttpFailure",
    "PathFailure",
    "Transport",
]

CONNECT_TIMEOUT = 30.0
"""Seconds for one connection to be made. All other waiting is bounded by the router's deadline."""

KEEPALIVE = 120.0
"""Seconds that an idle connection is kept for the next request."""

ON_DISPATCH: ContextVar[Callable[[], None]] = ContextVar("ON_DISPATCH")
"""What a backend calls when the request of the current task is on its way."""

REQUEST_BEGUN: ContextVar[bool] = ContextVar("REQUEST_BEGUN", default=False)
"""Whether the current call got as far as the HTTP session, so that bytes may have left."""


OPEN_STREAM: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("OPEN_STREAM", default=None)
"""What closes the connection of the stream that the current call has opened; None before it has."""


class HttpFailure(Exception):  # noqa: N818 - it is a fact to be translated, never seen by a caller
    """The server answered with a status other than 200.

    Attributes:
        code: The HTTP status.
        body: The whole body.
        retry_after: The Retry-After header, or None.
    """

    def __init__(self, code: int, body: bytes, retry_after: str | None) -> None:
        super().__init__(code)
        self.code = code
        self.body = body
        self.retry_after = retry_after


class PathFailure(Exception):  # noqa: N818 - it is a fact to be translated, never seen by a caller
    """No complete answer came.

    Attributes:
        kind: NETWORK or TIMEOUT.
        charged: Whether the request may have arrived.
        text: What happened, in the HTTP library's words.
    """

    def __init__(self, error: BaseException, *, timeout: bool, charged: bool) -> None:
        self.kind = FailureKind.TIMEOUT if timeout else FailureKind.NETWORK
        self.charged = charged
        self.text = f"{type(error).__name__}: {error}".rstrip(": ")
        super().__init__(self.text)


class Transport(Protocol):
    """One HTTP session, shared by every key of one event loop. Construct it inside the running loop."""

    @staticmethod
    def prepare() -> None:
        """Do in advance what takes long and serves every session; outside of a loop, too."""
        ...

    def http_options(self) -> dict[str, Any]:
        """Return the fields of the SDK's ``HttpOptions`` that make a client use this session."""
        ...

    def path_failure(self, error: Exception) -> PathFailure | None:
        """Return the failure that ``error``, met while a stream is read, is of the path; None if none."""
        ...

    async def aclose(self) -> None:
        """Close every connection. May be called twice."""
        ...
