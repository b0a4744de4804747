"""The providers as a router sees them: adapter, circuit breaker, token corrections, one-off preparation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, cast

import anyio
import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.engine.breaker import CircuitBreaker
from llm_router.engine.estimates import TokenCorrection
from llm_router.engine.extensions import broken_promise, own_error
from llm_router.errors import ExtensionError, LLMRouterError
from llm_router.providers.base import (
    DispatchingProvider,
    PreparedProvider,
    Provider,
    RelayingProvider,
    RelayRequest,
    Reply,
    StreamingProvider,
)

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

    @property
    def reports_dispatch(self) -> bool:
        """Whether the adapter says of each request that it is on the wire, before it is."""
        return isinstance(self.provider, DispatchingProvider) and self.provider.reports_dispatch is True

    def correction(self, model: str) -> TokenCorrection:
        """Return the correction of token estimates for ``model``, always the same one."""
        return self._corrections.setdefault(model, TokenCorrection())

    def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        """Stream from the provider; the answer of one that cannot stream comes as one piece.

        Raises:
            ExtensionError: The provider's ``stream`` is not an async generator.
        """
        if not isinstance(self.provider, StreamingProvider):
            return self._one_piece(deployment, request, dispatched)
        failure: ExtensionError
        pieces: Any
        try:
            pieces = self.provider.stream(deployment, request, dispatched)
        except LLMRouterError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            failure = own_error(self.provider, "stream", error)
        else:
            if isinstance(pieces, AsyncGenerator):
                return pieces
            failure = broken_promise(self.provider, "stream", "be an async generator", pieces)
        raise failure

    async def _one_piece(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        yield await self.provider.generate(deployment, request, dispatched)

    def relay(
        self, deployment: Deployment, relayed: RelayRequest, dispatched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        """Relay an exchange through the provider, which can."""
        # Others get no exchange; to ask here costs as much as to choose a deployment.
        provider = cast("RelayingProvider", self.provider)
        return provider.relay(deployment, relayed, dispatched)

    async def close(self, pieces: AsyncGenerator[Reply]) -> None:
        """Close a stream.

        Raises:
            ExtensionError: The provider raised an error of its own.
        """
        failure: ExtensionError
        try:
            await pieces.aclose()
        except LLMRouterError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            failure = own_error(self.provider, "stream", error)
        else:
            return
        raise failure

    def no_estimate(self, found: object) -> ExtensionError:
        """Return the error to raise if the provider estimated no number of tokens."""
        return broken_promise(
            self.provider, "estimate_tokens", "return a number of tokens, at least 1", found
        )

    def failed(self, method: str, error: Exception) -> ExtensionError:
        """Return the error to raise in place of one that ``method`` of the provider must not raise."""
        return own_error(self.provider, method, error)

    def own_error(self, error: Exception, *, streamed: bool) -> ExtensionError:
        """Return the error to raise in place of one that a call of the provider must not raise."""
        return own_error(self.provider, self._method(streamed=streamed), error)

    def no_reply(self, found: object, *, streamed: bool) -> ExtensionError:
        """Return the error to raise if a call returned or yielded something other than a reply."""
        verb = "yield" if (method := self._method(streamed=streamed)) == "stream" else "return"
        return broken_promise(self.provider, method, f"{verb} a Reply", found)

    def _method(self, *, streamed: bool) -> str:
        return "stream" if streamed and isinstance(self.provider, StreamingProvider) else "generate"


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
        """Run each provider's one-off ``prepare()``; concurrent callers wait for it.

        Raises:
            ImportError: What a provider needs is not installed. The next caller tries again.
            ExtensionError: A provider raised another error of its own. Likewise.
        """
        async with self._lock:
            while self._unprepared:
                await _prepare(self._unprepared[-1])
                self._unprepared.pop()
            self.is_due = False


async def _prepare(provider: PreparedProvider) -> None:
    failure: ExtensionError
    try:
        await provider.prepare()
    except (LLMRouterError, ImportError):  # what is not installed says so best itself
        raise
    except Exception as error:  # noqa: BLE001 - as above
        failure = own_error(provider, "prepare", error)
    else:
        return
    raise failure
