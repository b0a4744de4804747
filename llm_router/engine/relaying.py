"""An HTTP exchange through the pool: what is asked, and the answer that a caller reads piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from llm_router.domain.exchange import Exchange, Head
from llm_router.domain.response import Response
from llm_router.engine.state import SendState
from llm_router.errors import SendError
from llm_router.providers.base import RelayingProvider

__all__ = ["Relay"]

_EMPTY: Mapping[str, str] = {}


class Relay:
    """An exchange that is being relayed: an async context manager, and inside it an async iterator of bytes.

    ::

        async with router.relay(Exchange(path=…, body=…)) as answer:
            print(answer.head.status)
            async for piece in answer:
                ...

    Entering waits for the head of the answer. Until it comes, other deployments are tried as
    :meth:`Router.send` does. Where the pool has no answer, the head and the body say why in the protocol of
    the exchange: 429 with a Retry-After when to come back, 503, 504, or the provider's own refusal. Leaving
    the block, in whatever way, ends the call and settles the quota it took.

    Attributes:
        head: The status and the headers of the answer; meaningful inside the block.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[SendState]],
        run: Callable[[SendState], AsyncGenerator[Head | bytes | Response]],
        provider: RelayingProvider,
        exchange: Exchange,
    ) -> None:
        self._begin = begin
        self._run = run
        self._provider = provider
        self._exchange = exchange
        self._events: AsyncGenerator[Head | bytes | Response] | None = None
        self._send: SendState | None = None
        self._made: bytes | None = None
        self._response: Response | None = None
        self.head = Head(0)

    async def __aenter__(self) -> Self:
        self._send = await self._begin()
        events = self._events = self._run(self._send)
        try:
            first = await anext(events)
        except BaseException:
            await events.aclose()
            raise
        if isinstance(first, Head):
            self.head = first
        elif isinstance(first, Response):
            self._response = first
            error = first.error or SendError("there is no answer")
            self.head, self._made = self._provider.answer(self._exchange, error)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._events is not None:
            await self._events.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes of the body.

        Raises:
            StopAsyncIteration: There are no more.
            SendError: The answer broke off, so the client must not take it for a whole one.
        """
        if self._made is not None:
            made, self._made = self._made, b""
            if made:
                return made
            raise StopAsyncIteration
        if self._events is None or self._response is not None:
            raise StopAsyncIteration
        event = await anext(self._events)
        if isinstance(event, bytes):
            return event
        assert isinstance(event, Response)  # noqa: S101 - the head came first
        self._response = event
        if event.error is not None and not getattr(event.error, "told", False):
            raise event.error
        raise StopAsyncIteration

    @property
    def response(self) -> Response:
        """The outcome, once the body was read to its end; its text is empty.

        Raises:
            RuntimeError: It was not read to its end yet.
        """
        if self._response is None:
            raise RuntimeError("the answer was not read to its end")
        return self._response

    @property
    def key_id(self) -> str | None:
        """The key that answered, or that was used last; None if no request was sent."""
        last = None if self._send is None else self._send.last
        return None if last is None else last.deployment.key.key_id

    @property
    def model(self) -> str | None:
        """The model that answered, or that was tried last; None if no request was sent."""
        last = None if self._send is None else self._send.last
        return None if last is None else last.deployment.model

    @property
    def attempts(self) -> int:
        """How many requests were sent to the provider for it, the present one included."""
        if self._send is None:
            return 0
        return len(self._send.attempts) + (self._response is None)

    @property
    def waited(self) -> float:
        """Seconds spent waiting for capacity."""
        return 0.0 if self._send is None else self._send.waited

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the caller gave as ``metadata``."""
        return _EMPTY if self._send is None else self._send.metadata
