"""What goes back to a client: whole answers, pieces, and refusals in the protocol that it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_router.gemini_http.answers import protocol_of, write_answer
from llm_router.gemini_http.api_errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_router.domain.exchange import Exchange, Head
    from llm_router.engine.timing import Deadlines

__all__ = ["READ_ONLY", "Answer", "RefusedError"]

READ_ONLY = ApiError(405, "INVALID_ARGUMENT", "This can only be read: GET it.")
"""The refusal of what would change something that cannot be changed."""

_IDLE = 60.0
"""Seconds that a client may take to read a piece of an answer."""

_ITS_OWN = frozenset({"content-length", "transfer-encoding", "connection"})


class RefusedError(Exception):
    """The gateway itself refuses a request.

    Args:
        error: Why.
        retry_after: Seconds after which to come back.
    """

    def __init__(self, error: ApiError, retry_after: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after = retry_after

    def answer(self, exchange: Exchange) -> tuple[Head, bytes]:
        """Return the answer that says so."""
        return write_answer(protocol_of(exchange), self.error, self.retry_after)


class Answer:
    """The answer to one request.

    Args:
        send: Sends to the client, as ASGI has it.
        deadlines: Bounds how long a client may take.

    Attributes:
        is_begun: Whether its head is sent, so that no other answer can be given.
    """

    def __init__(self, send: Callable[[Any], Awaitable[None]], deadlines: Deadlines) -> None:
        self._send = send
        self._deadlines = deadlines
        self.is_begun = False

    async def begin(self, head: Head) -> None:
        """Send the head of an answer that comes in pieces."""
        await self._start(head.status, _encoded(head))

    async def whole(self, head: Head, body: bytes, *, without_body: bool = False) -> None:
        """Send a whole answer; to HEAD, all but its body."""
        headers = [*_encoded(head), (b"content-length", str(len(body)).encode())]
        await self._start(head.status, headers)
        await self._send({"type": "http.response.body", "body": b"" if without_body else body})

    async def write(self, piece: bytes) -> None:
        """Send a piece.

        Raises:
            TimeoutError: The client reads too slowly.
        """
        with self._deadlines.limit(_IDLE) as limit:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if limit.expired:
            raise TimeoutError

    async def end(self) -> None:
        """End an answer that came in pieces."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.is_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


def _encoded(head: Head) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in head.headers
        if name not in _ITS_OWN
    ]
