"""The providers as a router sees them: adapter, circuit breaker, token corrections, one-off preparation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Protocol, cast

import anyio
import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.request import Request
from llm_router.engine.breaker import CircuitBreaker
from llm_router.engine.estimates import TokenCorrection
from llm_router.engine.extensions import broken_promise, own_error
from llm_router.errors import ConfigError, ExtensionError, LLMRouterError
from llm_router.providers.base import (
    DispatchingProvider,
    MeteredProvider,
    PreparedProvider,
    Provider,
    RelayingProvider,
    RelayRequest,
    Reply,
    StreamingProvider,
)

__all__ = ["Preparation", "Search", "Upstream", "Upstreams"]


_SENDING = ("generate", "stream", "relay")
"""The methods of a provider that send a request."""


def _place(provider: Provider, name: str) -> int:
    """Return where an attribute is defined: 0 in the object itself, 1 in its class, more in its bases."""
    places = getattr(provider, "__dict__", {}), *map(vars, type(provider).__mro__)
    return next((number for number, names in enumerate(places) if name in names), len(places))


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
    _corrections: dict[str, tuple[TokenCorrection, ...]] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def reports_dispatch(self) -> bool:
        """Whether the adapter says of each request that it is on the wire, before it is.

        A subclass that sends in a way of its own does not inherit that promise.
        """
        if not (isinstance(self.provider, DispatchingProvider) and self.provider.reports_dispatch is True):
            return False
        promised = _place(self.provider, "reports_dispatch")
        return all(_place(self.provider, method) >= promised for method in _SENDING)

    def features(self, request: Request) -> frozenset[str]:
        """Return the features of a request that have quotas of their own, as far as the adapter knows them.

        Raises:
            ExtensionError: The provider raised an error of its own, or returned something else.
        """
        if not isinstance(self.provider, MeteredProvider):
            return frozenset()
        failure: ExtensionError
        try:
            found = self.provider.features(request)
            if not isinstance(found, str):
                return frozenset(found)
            failure = broken_promise(self.provider, "features", "return a collection of names", found)
        except LLMRouterError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the user's code raises
            failure = own_error(self.provider, "features", error)
        raise failure

    def corrections(self, model: str) -> tuple[TokenCorrection, ...]:
        """Return the corrections of estimates for ``model`` by kind of content, always the same ones."""
        return self._corrections.setdefault(model, (TokenCorrection(), TokenCorrection()))

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

    def no_text(self, found: object, *, streamed: bool) -> ExtensionError:
        """Return the error to raise if the text of a reply is none."""
        return broken_promise(
            self.provider, self._method(streamed=streamed), "give a reply whose text is a str", found
        )

    def no_reply(self, found: object, *, streamed: bool) -> ExtensionError:
        """Return the error to raise if a call returned or yielded something other than a reply."""
        verb = "yield" if (method := self._method(streamed=streamed)) == "stream" else "return"
        return broken_promise(self.provider, method, f"{verb} a Reply", found)

    def _method(self, *, streamed: bool) -> str:
        return "stream" if streamed and isinstance(self.provider, StreamingProvider) else "generate"


class Upstreams:
    """The providers of a router, made when a key of theirs is first used, and kept from then on.

    Args:
        providers: The adapter for all keys, or adapters by the name that keys give as their ``provider``.

    Attributes:
        known: Those that were made, by name.
    """

    def __init__(self, providers: Provider | Mapping[str, Provider]) -> None:
        self._providers = providers
        self.known: dict[str, Upstream] = {}

    def of(self, deployments: Iterable[Deployment]) -> dict[str, Upstream]:
        """Return those of deployments by name, in the order of these.

        Raises:
            ConfigError: One has no adapter.
        """
        names = list(dict.fromkeys(deployment.key.provider for deployment in deployments))
        adapters = self._providers
        if isinstance(adapters, Mapping) and (missing := set(names) - adapters.keys()):
            name = min(missing)
            raise ConfigError(f"no adapter for provider {name!r}: pass provider={{{name!r}: …}}")
        for name in names:
            if name not in self.known:
                adapter = adapters[name] if isinstance(adapters, Mapping) else adapters
                self.known[name] = Upstream(name, adapter)
        return {name: self.known[name] for name in names}

    def relaying(self) -> RelayingProvider | None:
        """Return the adapter that exchanges are relayed to, if possible one that is used; or None."""
        used = (upstream.provider for upstream in self.known.values())
        others = self._providers.values() if isinstance(self._providers, Mapping) else ()
        return next((each for each in chain(used, others) if isinstance(each, RelayingProvider)), None)

    def others_than(self, provider: object) -> frozenset[str]:
        """Return the names whose adapter is another one, as far as they have one of their own."""
        if not isinstance(self._providers, Mapping):
            return frozenset()
        return frozenset(name for name, each in self._providers.items() if each is not provider)


class Search(Protocol):
    """What is to be asked before the first request."""

    @property
    def is_due(self) -> bool:
        """Whether there is something to ask."""
        ...

    async def run(self) -> None:
        """Ask; it is not due any more then, whatever becomes of it."""
        ...


class Preparation:
    """What is to be done once, before the first request, because it takes long.

    Args:
        providers: The providers, of which some have something to prepare.
        search: What is to be asked about the deployments, when there are others than before.

    Attributes:
        is_due: Whether some of it is still to be done.
    """

    def __init__(self, providers: Iterable[Provider], search: Search | None = None) -> None:
        distinct = {id(provider): provider for provider in providers}
        self._known = set(distinct)
        self._unprepared = [each for each in distinct.values() if isinstance(each, PreparedProvider)]
        self._search = search
        self._running: tuple[asyncio.AbstractEventLoop, anyio.Lock] | None = None
        self.is_due = bool(self._unprepared) or self._must_search

    @property
    def _must_search(self) -> bool:
        return self._search is not None and self._search.is_due

    def add(self, providers: Iterable[Provider]) -> None:
        """Have what further providers and deployments need done before the next request."""
        for each in providers:
            if id(each) not in self._known:
                self._known.add(id(each))
                if isinstance(each, PreparedProvider):
                    self._unprepared.append(each)
        self.is_due = bool(self._unprepared) or self._must_search

    async def run(self) -> None:
        """Run each provider's one-off ``prepare()``, and the search; concurrent callers wait for it.

        Raises:
            ImportError: What a provider needs is not installed. The next caller tries again.
            ExtensionError: A provider raised another error of its own. Likewise.
        """
        async with self._lock():
            while self._unprepared:
                provider = self._unprepared[-1]
                await _prepare(provider)
                self._unprepared.remove(provider)
            while self._search is not None and self._search.is_due:
                await self._search.run()
            self.is_due = bool(self._unprepared)

    def _lock(self) -> anyio.Lock:
        """Return the lock of the running loop: who holds that of another is gone, or in a parent process."""
        loop = asyncio.get_running_loop()
        if self._running is None or self._running[0] is not loop:
            self._running = loop, anyio.Lock()
        return self._running[1]


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
