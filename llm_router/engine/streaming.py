"""The stream that a caller reads an answer from, piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from llm_router.domain.response import Chunk, Response

__all__ = ["Stream"]


class Stream:
    """An answer that is read while it comes: an async context manager, and inside it an async iterator.

    ::

        async with router.stream("Tell me a story") as stream:
            async for chunk in stream:
                print(chunk.text, end="")
        print(stream.response.usage)

    Entering waits for the first piece. Until it comes, other deployments are tried as :meth:`Router.send`
    does; afterwards the answer cannot come from another. Leaving the block, in whatever way, ends the call
    and settles the quota it took. A stream is read by one task at a time.
    """

    def __init__(self, events: AsyncGenerator[Chunk | Response]) -> None:
        self._events = events
        self._next: Chunk | Response | None = None
        self._is_open = False
        self._response: Response | None = None

    async def __aenter__(self) -> Self:
        self._is_open = True
        self._next = await self._advance()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open, self._next = False, None
        await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """Return the next piece.

        Raises:
            StopAsyncIteration: There are no more: the answer is complete.
            SendError: There is no answer, or it broke off: the ``error`` of the :attr:`response`.
        """
        chunk = await self.read()
        if chunk is not None:
            return chunk
        self.response.raise_for_error()
        raise StopAsyncIteration

    async def read(self) -> Chunk | None:
        """Return the next piece, or None when there are no more, also after a failure."""
        if self._response is not None:
            return None
        event, self._next = self._next, None
        if event is None:
            event = await self._advance()
        if isinstance(event, Response):
            self._response = event
            return None
        return event

    async def collect(self) -> Response:
        """Read what is left, and return the response, successful or not."""
        while await self.read() is not None:
            pass
        return self.response

    @property
    def response(self) -> Response:
        """The response with the whole text, once the last piece was read.

        Raises:
            RuntimeError: The last piece was not read yet.
        """
        if self._response is None:
            raise RuntimeError("the answer was not read to its end: iterate over the stream, or collect() it")
        return self._response

    async def _advance(self) -> Chunk | Response:
        if not self._is_open:
            raise RuntimeError("a stream is read inside its block: async with router.stream(…) as stream")
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            raise RuntimeError("a stream is read once: ask the router for another") from None

    def __repr__(self) -> str:
        return f"Stream({self._response!r})" if self._response is not None else "Stream()"
