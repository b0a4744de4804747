"""A provider that answers by script, for tests that need no server."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence

import attrs

from llm_router.domain.clock import Clock, sleep
from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.domain.response import Usage
from llm_router.providers.base import Reply

__all__ = ["Answer", "Call", "FakeProvider", "Piece"]

Piece = str | Reply | BaseException | asyncio.Event
"""A part of an answer: a text or reply to give, an exception to raise, or an event to wait for."""

Answer = Piece | Sequence[Piece] | Callable[[Deployment, Request], "str | Reply"]
"""What :meth:`FakeProvider.script` takes: a piece, several in order, or a function that makes one."""


@attrs.frozen
class Call:
    """One request that reached the provider.

    Attributes:
        at: Seconds since the epoch on the provider's clock; 0 without a clock.
        key_id: The key it was sent with.
        model: The model it was sent to.
        request: The request.
    """

    at: float
    key_id: str
    model: str
    request: Request


class FakeProvider:
    """A provider that gives scripted answers in order, and an echo of the prompt when none is left.

    An answer is one of:

    - a text, streamed word by word, or a :class:`~llm_router.providers.base.Reply`;
    - an exception, which is raised;
    - a list of these, streamed piece by piece;
    - a function of (deployment, request) that returns a text or a reply;
    - an :class:`asyncio.Event`: the answer, or the rest of a list, waits until it is set. On its own it is
      followed by the echo. An event that is never set is an answer that never comes.

    >>> provider = FakeProvider(["first"])
    >>> provider.script("second", ["in ", "two pieces"])
    >>> provider.script(ProviderError("overloaded", kind="server", code=503), times=3)
    >>> provider.script([gate := asyncio.Event(), "late"], key_id="key-1")

    Args:
        answers: The first answers of the script.
        clock: The clock that stamps calls and times delays. Without one there are no delays.
        delay: The initial value of ``delay``.

    Attributes:
        calls: Every dispatched request, in order.
        by_key: Answers for one key only, by ``key_id``; they are used before the others.
        delay: Seconds that each answer takes, and each piece of a streamed one. May be changed at any time.
        dispatch: If set to an event, requests wait for it before they are reported as dispatched and
            appear in ``calls``. None, the default, dispatches them at once.
        preparing: The number of requests that wait for ``dispatch``.
        streaming: The number of answers being streamed.
        closed: How many times the provider was closed.
    """

    reports_dispatch = True

    def __init__(
        self, answers: Iterable[Answer] = (), *, clock: Clock | None = None, delay: float = 0.0
    ) -> None:
        self.calls: list[Call] = []
        self.by_key: dict[str, deque[Answer]] = {}
        self.delay = delay
        self.dispatch: asyncio.Event | None = None
        self.preparing = 0
        self.streaming = 0
        self.closed = 0
        self._answers = deque(answers)
        self._clock = clock

    def script(self, *answers: Answer, key_id: str | None = None, times: int = 1) -> None:
        """Append ``answers`` to the script, ``times`` times over.

        Args:
            answers: What to answer, in order.
            key_id: If given, the answers are for requests with this key only.
            times: How often to repeat them.
        """
        queue = self._answers if key_id is None else self.by_key.setdefault(key_id, deque())
        queue.extend(answers * times)

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        """Return the next answer of the script, whole."""
        pieces = await self._begin(deployment, request, dispatched)
        await self._pause()
        reply, text = Reply(""), ""
        for piece in pieces:
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            reply = piece
            text += reply.text
        return attrs.evolve(reply, text=text)

    async def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        """Yield the next answer of the script piece by piece, a text word by word."""
        pieces = await self._begin(deployment, request, dispatched)
        self.streaming += 1
        try:
            for piece in pieces:
                if isinstance(piece, asyncio.Event):
                    await piece.wait()
                    continue
                await self._pause()
                yield piece
        finally:
            self.streaming -= 1

    def validate(self, request: Request) -> None:
        """Accept every request."""

    def estimate_tokens(self, request: Request) -> int:
        """Count a token per word, so that a test can choose the size of a prompt."""
        return max(1, len(str(request.contents).split()))

    async def aclose(self) -> None:
        """Count the call in ``closed``."""
        self.closed += 1

    async def _begin(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Iterator[Reply | asyncio.Event]:
        """Dispatch and record a request, and return the pieces of its answer."""
        await self._dispatch(dispatched)
        now = self._clock.time() if self._clock is not None else 0.0
        self.calls.append(Call(now, deployment.key.key_id, deployment.model, request))
        queue = self.by_key.get(deployment.key.key_id) or self._answers
        answer = queue.popleft() if queue else _echo(request)
        return self._pieces(answer, deployment, request)

    async def _dispatch(self, dispatched: Callable[[], None]) -> None:
        if self.dispatch is not None:
            self.preparing += 1
            try:
                await self.dispatch.wait()
            finally:
                self.preparing -= 1
        dispatched()

    async def _pause(self) -> None:
        if self._clock is not None and self.delay > 0:
            await sleep(self._clock, self.delay)

    def _pieces(
        self, answer: Answer, deployment: Deployment, request: Request
    ) -> Iterator[Reply | asyncio.Event]:
        """Yield an answer piece by piece, with the events to wait for; raise the exceptions in it."""
        pieces = _listed(answer, deployment, request)
        text = ""
        for number, piece in enumerate(pieces, 1):
            if isinstance(piece, BaseException):
                raise piece
            if not isinstance(piece, str):
                yield piece
                continue
            text += piece
            reply = self._reply(text, deployment, request)
            yield attrs.evolve(reply, text=piece, finish_reason="STOP" if number == len(pieces) else None)

    def _reply(self, text: str, deployment: Deployment, request: Request) -> Reply:
        tokens = self.estimate_tokens(request)
        usage = Usage(input_tokens=tokens, output_tokens=len(text), total_tokens=tokens + len(text))
        return Reply(text, usage=usage, model=deployment.model)


def _listed(answer: Answer, deployment: Deployment, request: Request) -> Sequence[Piece]:
    if callable(answer):
        answer = answer(deployment, request)
    if isinstance(answer, str):
        return _words(answer)
    if isinstance(answer, asyncio.Event):
        return [answer, *_words(_echo(request))]
    return answer if isinstance(answer, Sequence) else [answer]


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*|^\s*$", text)


def _echo(request: Request) -> str:
    return f"echo: {request.contents}"
