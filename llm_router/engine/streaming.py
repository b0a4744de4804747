"""An answer piece by piece: the same way as a send, with the call open while the caller reads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import Self

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.domain.response import Chunk, Response
from llm_router.engine.lease import Lease
from llm_router.engine.run import Job, Run
from llm_router.engine.sender import UNBOUNDED_TTL, Sender
from llm_router.errors import SendError
from llm_router.providers.base import Provider, Reply, StreamingProvider

__all__ = ["Stream", "Streamer"]

_END = Reply("")


class Streamer:
    """Carries out jobs whose answers are read as they come.

    Args:
        sender: Knows the steps.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    async def events(self, make_job: Callable[[], Awaitable[Job]]) -> AsyncGenerator[Chunk | Response]:
        """Yield the pieces of an answer, and last of all the response.

        Another deployment is tried as long as no piece was yielded. Closing the generator aborts the call
        that is open, and settles what is known to be used.

        Args:
            make_job: Returns what to do, or raises what is wrong with it.

        Raises:
            InvalidRequestError: The provider says that the request cannot even be built.
        """
        sender = self._sender
        run = sender.start(await make_job())
        response: Response | None = None
        while response is None:
            lease = await sender.acquire(run, UNBOUNDED_TTL)
            if isinstance(lease, Response):
                yield lease
                return
            texts: list[str] = []
            outcome: Reply | SendError = _END
            async with lease, aclosing(self._call(run, lease)) as outcomes:
                async for outcome in outcomes:
                    if isinstance(outcome, Reply):
                        texts.append(outcome.text)
                        yield Chunk(outcome.text, outcome.raw)
            if isinstance(outcome, Reply):
                response = sender.responder.answered(run, attrs.evolve(outcome, text="".join(texts)))
            else:
                response = await sender.conclude(run, outcome, again=not texts)
        yield response

    async def _call(self, run: Run, lease: Lease) -> AsyncGenerator[Reply | SendError]:
        """Make one call, and yield what comes: replies, and an error at most, which is the last."""
        sender = self._sender
        provider = sender.provider(lease)
        stream = (provider if isinstance(provider, StreamingProvider) else _OnePiece(provider)).stream
        reply: Reply | SendError = _END
        began = sender.begin(run, lease)
        seconds = run.time_left(began)
        async with aclosing(stream(lease.slot.deployment, run.job.request, lease.launched)) as replies:
            while (outcome := await sender.bound(run, lease, anext(replies, _END), seconds)) is not _END:
                reply = outcome
                if isinstance(reply, SendError):
                    break
                lease.launched()
                sender.count(lease, reply)  # should the caller read no further
                yield reply
                seconds = run.job.timeout
        if isinstance(reply, Reply):
            sender.learn(run, lease, reply)
        sender.record(run, began, reply)
        if isinstance(reply, SendError):
            yield reply


@attrs.frozen
class _OnePiece:
    """Streams from a provider that cannot."""

    provider: Provider

    async def stream(
        self, deployment: Deployment, request: Request, launched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        yield await self.provider.generate(deployment, request, launched)


class Stream:
    """An answer on its way: an asynchronous context manager, and in it an asynchronous iterator.

    ::

        async with router.stream("Tell me a story") as stream:
            async for chunk in stream:
                print(chunk.text, end="")
        print(stream.response.usage)

    Entering waits for the first piece, and tries other deployments as :meth:`Router.send` does as long as
    there is none; once a piece has come, the answer cannot be had from another. Leaving, however that comes
    about, ends the call and settles the quota it took. To be read by one task at a time.
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
        """Return the next piece, or None when there are no more, be it for a failure."""
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
        """What came of it, with the whole text, once the last piece was read.

        Raises:
            RuntimeError: The last piece was not read.
        """
        if self._response is None:
            raise RuntimeError("the answer was not read to its end: iterate over the stream, or collect() it")
        return self._response

    async def _advance(self) -> Chunk | Response:
        if not self._is_open:
            raise RuntimeError("a stream is read inside of its block: async with router.stream(…) as stream")
        try:
            return await anext(self._events)
        except StopAsyncIteration:
            raise RuntimeError("a stream is read once: ask the router for another") from None

    def __repr__(self) -> str:
        return f"Stream({self._response!r})" if self._response is not None else "Stream()"
