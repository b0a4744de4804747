"""A provider that answers by script, for tests that need no server."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import attrs

from llm_router.domain.clock import Clock, sleep
from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.domain.response import Usage
from llm_router.providers.base import Reply

__all__ = ["Call", "FakeProvider"]

Answer = str | Reply | BaseException | Callable[[Deployment, Request], "str | Reply"]


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
        answers: Texts, replies, exceptions to raise, or functions of (deployment, request).
        clock: Where delays take place.
        delay: Seconds that each answer takes.

    Attributes:
        calls: Every request it was sent, in order.
        by_key: Answers for one key only, by ``key_id``; they go before the others.
        closed: How many times it was closed.
    """

    def __init__(
        self, answers: Iterable[Answer] = (), *, clock: Clock | None = None, delay: float = 0.0
    ) -> None:
        self.calls: list[Call] = []
        self.by_key: dict[str, deque[Answer]] = {}
        self.closed = 0
        self._answers = deque(answers)
        self._clock = clock
        self._delay = delay

    async def generate(self, deployment: Deployment, request: Request, launched: Callable[[], None]) -> Reply:
        """Answer by script."""
        launched()
        now = self._clock.time() if self._clock is not None else 0.0
        self.calls.append(Call(now, deployment.key.key_id, deployment.model, request))
        if self._clock is not None and self._delay > 0:
            await sleep(self._clock, self._delay)
        answer = self._next(deployment.key.key_id)
        if callable(answer):
            answer = answer(deployment, request)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Reply) else self._reply(answer, deployment, request)

    def validate(self, request: Request) -> None:
        """Accept everything."""

    def estimate_tokens(self, request: Request) -> int:
        """Count a token per word, so that a test can say what a prompt weighs."""
        return max(1, len(str(request.contents).split()))

    async def aclose(self) -> None:
        """Count the call."""
        self.closed += 1

    def _next(self, key_id: str) -> Answer:
        queue = self.by_key.get(key_id) or self._answers
        return queue.popleft() if queue else lambda _, request: f"echo: {request.contents}"

    def _reply(self, text: str, deployment: Deployment, request: Request) -> Reply:
        tokens = self.estimate_tokens(request)
        usage = Usage(input_tokens=tokens, output_tokens=len(text), total_tokens=tokens + len(text))
        return Reply(text, usage=usage, finish_reason="STOP", model=deployment.model)
