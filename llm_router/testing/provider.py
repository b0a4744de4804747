"""A provider that answers by script, for tests that need no server."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence

import attrs

from llm_router.domain.clock import Clock, sleep
from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.domain.response import Usage
from llm_router.providers.base import Reply

__all__ = ["Call", "FakeProvider"]

Piece = str | Reply | BaseException
Answer = Piece | Sequence[Piece] | Callable[[Deployment, Request], "str | Reply"]


@attrs.frozen
class Call:
    """One request that reached the provider.

    Attributes:
        at: Seconds since the epoch, on the provider's clock; 0 without one.
        key_id: The key it came through.
        model: The model it asked for.
        request: The request.
    """

    at: float
    key_id: str
    model: str
    request: Request


class FakeProvider:
    """Answers with what it was told to, in order, and with an echo when nothing is left.

    Args:
        answers: Texts, replies, exceptions to raise, lists of these that come piece by piece, or functions
            of (deployment, request).
        clock: Where delays take place.
        delay: Seconds that each answer takes, and each piece of one that is streamed.

    Attributes:
        calls: Every request it was sent, in order.
        by_key: Answers for one key only, by ``key_id``; they go before the others.
        closed: How many times it was closed.
        streaming: How many answers are being streamed.
    """

    def __init__(
        self, answers: Iterable[Answer] = (), *, clock: Clock | None = None, delay: float = 0.0
    ) -> None:
        self.calls: list[Call] = []
        self.by_key: dict[str, deque[Answer]] = {}
        self.closed = 0
        self.streaming = 0
        self._answers = deque(answers)
        self._clock = clock
        self._delay = delay

    async def generate(self, deployment: Deployment, request: Request, launched: Callable[[], None]) -> Reply:
        """Answer by script."""
        pieces = self._begin(deployment, request, launched)
        await self._pause()
        reply, text = Reply(""), ""
        for reply in pieces:
            text += reply.text
        return attrs.evolve(reply, text=text)

    async def stream(
        self, deployment: Deployment, request: Request, launched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        """Answer by script, a text word by word."""
        pieces = self._begin(deployment, request, launched)
        self.streaming += 1
        try:
            for piece in pieces:
                await self._pause()
                yield piece
        finally:
            self.streaming -= 1

    def validate(self, request: Request) -> None:
        """Accept everything."""

    def estimate_tokens(self, request: Request) -> int:
        """Count a token per word, so that a test can say what a prompt weighs."""
        return max(1, len(str(request.contents).split()))

    async def aclose(self) -> None:
        """Count the call."""
        self.closed += 1

    def _begin(
        self, deployment: Deployment, request: Request, launched: Callable[[], None]
    ) -> Iterator[Reply]:
        """Take note of a call, and return the pieces of its answer; they may end in an exception."""
        launched()
        now = self._clock.time() if self._clock is not None else 0.0
        self.calls.append(Call(now, deployment.key.key_id, deployment.model, request))
        queue = self.by_key.get(deployment.key.key_id) or self._answers
        answer = queue.popleft() if queue else f"echo: {request.contents}"
        return self._pieces(answer, deployment, request)

    async def _pause(self) -> None:
        if self._clock is not None and self._delay > 0:
            await sleep(self._clock, self._delay)

    def _pieces(self, answer: Answer, deployment: Deployment, request: Request) -> Iterator[Reply]:
        if callable(answer):
            answer = answer(deployment, request)
        if isinstance(answer, str):
            answer = re.findall(r"\s*\S+\s*|^\s*$", answer)
        pieces = answer if isinstance(answer, Sequence) else [answer]
        text = ""
        for number, piece in enumerate(pieces, 1):
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, Reply):
                yield piece
                continue
            text += piece
            reply = self._reply(text, deployment, request)
            yield attrs.evolve(reply, text=piece, finish_reason="STOP" if number == len(pieces) else None)

    def _reply(self, text: str, deployment: Deployment, request: Request) -> Reply:
        tokens = self.estimate_tokens(request)
        usage = Usage(input_tokens=tokens, output_tokens=len(text), total_tokens=tokens + len(text))
        return Reply(text, usage=usage, model=deployment.model)
