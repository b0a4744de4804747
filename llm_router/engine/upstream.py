"""The providers as a router sees them: adapter, circuit breaker, token corrections, one-off preparation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable

import anyio
import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.engine.breaker import CircuitBreaker
from llm_router.engine.estimates import TokenCorrection
from llm_router.providers.base import PreparedProvider, Provider, Reply, StreamingProvider

__all__ = ["Preparation", "Upstream"]


@attrs.define(eq=False)
class Upstream:
    """A provider with what this process has learnt about it.

    Attributes:
        name: The name that keys give as their ``provider``.
        provider: The adapter.
        breaker: Opens when the provider cannot be reached.
    """

    name: str
    provider: Provider
    breaker: CircuitBreaker = attrs.field(factory=CircuitBreaker, init=False)
    _corrections: dict[str, TokenCorrection] = attrs.field(factory=dict, init=False, repr=False)

    def correction(self, model: str) -> TokenCorrection:
        """Return the correction of token estimates for ``model``, always the same one."""
        return self._corrections.setdefault(model, TokenCorrection())

    def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        """Stream from the provider; the answer of one that cannot stream comes as one piece."""
        if isinstance(self.provider, StreamingProvider):
            return self.provider.stream(deployment, request, dispatched)
        return self._one_piece(deployment, request, dispatched)

    async def _one_piece(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        yield await self.provider.generate(deployment, request, dispatched)


class Preparation:
    """What the providers have to do once, before the first request, because it takes long.

    Args:
        providers: The providers.

    Attributes:
        is_due: Whether some of it is still to be done.
    """

    def __init__(self, providers: Iterable[Provider]) -> None:
        distinct = {id(provider): provider for provider in providers}.values()
        self._unprepared = [each for each in distinct if isinstance(each, PreparedProvider)]
        self._lock = anyio.Lock()
        self.is_due = bool(self._unprepared)

    async def run(self) -> None:
        """Run each provider's one-off ``prepare()``; concurrent callers wait for it."""
        async with self._lock:
            while self._unprepared:
                await self._unprepared[-1].prepare()
                self._unprepared.pop()
            self.is_due = False
