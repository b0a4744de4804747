"""What the two HTTP backends of the Gemini adapter share.

google-genai accepts an HTTP session from its caller. Ours recognises failures itself, before the SDK sees
them: a status other than 200 is a :class:`HttpFailure`, whatever its body, and a broken path is a
:class:`PathFailure`. So no SDK version repeats a request behind our back (some repeat a dropped POST on
aiohttp whatever their retry options say), both backends fail alike, and no error object carries the request
with its key.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
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
    "RawAnswer",
    "Transport",
    "refusal_in",
]

CONNECT_TIMEOUT = 30.0
"""The most seconds for making a connection. The router's deadline bounds all other waiting."""

KEEPALIVE = 120.0
"""Seconds for which an idle connection is kept."""

ON_DISPATCH: ContextVar[Callable[[], None]] = ContextVar("ON_DISPATCH")
"""What a backend calls when the request of the current task is on the wire."""

REQUEST_BEGUN: ContextVar[bool] = ContextVar("REQUEST_BEGUN", default=False)
"""Whether the current call has reached the HTTP session, so that bytes may have been sent."""

OPEN_STREAM: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("OPEN_STREAM", default=None)
"""What closes the connection of the stream that the current call has opened, or None."""


class HttpFailure(Exception):  # noqa: N818 - a fact to translate, which no caller sees
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


# The library's words for how a connection is encrypted, which may be the repr of an object.
_OF_CONNECTION = re.compile(r" ssl:(<[^>]*>|\w+)")


class PathFailure(Exception):  # noqa: N818 - a fact to translate, which no caller sees
    """No complete answer came.

    Attributes:
        kind: NETWORK or TIMEOUT.
        charged: Whether the request may have arrived.
        text: What happened, in the HTTP library's words.
    """

    def __init__(self, error: BaseException, *, timeout: bool, charged: bool) -> None:
        self.kind = FailureKind.TIMEOUT if timeout else FailureKind.NETWORK
        self.charged = charged
        self.text = _OF_CONNECTION.sub("", f"{type(error).__name__}: {error}").rstrip(": ")
        super().__init__(self.text)


class RawAnswer(Protocol):
    """An answer of which the status and the headers have come."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names in any case find them."""
        ...

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            PathFailure: It broke off.
        """
        ...

    def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the body as it comes.

        Raises:
            PathFailure: It broke off.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection, unless the body was read to its end. May be called twice."""
        ...


async def refusal_in(answer: RawAnswer) -> HttpFailure:
    """Read the rest of a refusal; a body that breaks off does not hide the status."""
    try:
        body = await answer.read()
    except PathFailure:
        body = b""
    return HttpFailure(answer.status, body, answer.headers.get("retry-after"))


class Transport(Protocol):
    """One HTTP session, shared by every key of one event loop. Construct it inside the running loop."""

    @staticmethod
    def prepare() -> None:
        """Do the slow work that all sessions share; this needs no running loop."""
        ...

    def http_options(self) -> dict[str, Any]:
        """Return the fields of the SDK's ``HttpOptions`` that make a client use this session."""
        ...

    async def exchange(self, verb: str, url: str, headers: Mapping[str, str], body: bytes) -> RawAnswer:
        """Send a request as it is, once, and return its answer, whatever the status.

        Raises:
            PathFailure: No answer came.
        """
        ...

    def path_failure(self, error: Exception) -> PathFailure | None:
        """Return the failure that ``error``, raised while reading a stream, stands for; None if none."""
        ...

    async def aclose(self) -> None:
        """Close every connection. May be called twice."""
        ...
