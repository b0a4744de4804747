"""The port between the engine and a provider's SDK."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.exchange import Exchange, Head
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.domain.queries import ModelInfo, Vector
from llm_router.domain.request import Request
from llm_router.domain.response import Usage, resolved
from llm_router.errors import LLMRouterError

__all__ = [
    "DispatchingProvider",
    "FailureKind",
    "FaultScope",
    "MeteredProvider",
    "PreparedProvider",
    "Provider",
    "QueriedProvider",
    "Queries",
    "RelayRequest",
    "RelayingProvider",
    "Reply",
    "StreamingProvider",
]


@attrs.frozen
class Reply:
    """What a provider answered.

    Attributes:
        text: The answer's text; may be empty, as with a function call.
        usage: Tokens as the provider counted them, or None if it did not say.
        finish_reason: The provider's word for why the answer ended.
        model: The model that really ran, or None if the provider did not say.
        blocked: Why the prompt or the answer was blocked, or None if it was not.
        content: The answer as contents that a later request can send back (a plain dictionary); None if
            there is nothing to send back but the text. A ``thought_signature`` (bytes) of a part is sent back
            to this model only, by way of :attr:`Request.origins`; the rest to any model.
        source: What :attr:`raw` is made from: the SDK's own response object, or a
            :class:`~llm_router.domain.response.Deferred` of it.
        failed: Why there is no usable answer although the provider gave one and blocked nothing, such as
            ``MALFORMED_FUNCTION_CALL``; None if there is a usable answer, which may be without text. No
            key, project or path is at fault.
        parsed: What the answer says in the form that the request asked for, as by a schema; None otherwise.
    """

    text: str
    usage: Usage | None = None
    finish_reason: str | None = None
    model: str | None = None
    blocked: str | None = None
    content: Any = attrs.field(default=None, repr=False, eq=False)
    source: Any = attrs.field(default=None, alias="raw", repr=False, eq=False)
    failed: str | None = None
    parsed: Any = attrs.field(default=None, repr=False, eq=False)

    @property
    def raw(self) -> Any:
        """The SDK's own response object, which may be made only when it is asked for."""
        return resolved(self.source)


class Provider(Protocol):
    """Sends requests; implement it to route to another service.

    A provider never retries: only the router does. It never lets an error of its SDK out: it raises
    :class:`~llm_router.errors.ProviderError`, which carries neither the key nor (in ``__cause__``,
    ``__context__`` or its traceback) any object that does. The error's kind says what went wrong, and its
    scope what the router is to leave alone for it; a provider that cannot know gives no scope.

    In a router with several providers, each serves its own deployments only: the router asks the provider
    of the deployment concerned to validate, estimate and send, never another one in its place.
    """

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None], /
    ) -> Reply:
        """Send ``request`` once through ``deployment``.

        Cancellation aborts the call and leaves nothing running.

        Args:
            deployment: The key and the model to use.
            request: What to send.
            dispatched: To be called when the request is on the wire. A router lets only a few requests hold
                quota without being on the wire, so that quota is taken about when the provider counts it;
                a provider that never calls this delays the others a little.

        Raises:
            ProviderError: The call failed; the error says how.
        """
        ...

    def validate(self, request: Request) -> None:
        """Check ``request`` as far as possible without sending it.

        The router calls this before it takes quota of any of this provider's deployments.

        Raises:
            InvalidRequestError: The request is wrong, and no key or model would make it right.
        """
        ...

    def estimate_tokens(self, request: Request) -> int:
        """Estimate the input tokens of ``request`` on this provider, at least 1, without blocking or I/O."""
        ...

    async def aclose(self) -> None:
        """Close connections. May be called twice."""
        ...


@runtime_checkable
class StreamingProvider(Provider, Protocol):
    """A provider that can yield an answer while it arrives.

    Other providers can be streamed too: their answer comes as one chunk.
    """

    def stream(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None], /
    ) -> AsyncGenerator[Reply]:
        """Send ``request`` once through ``deployment`` and yield its answer in pieces, at least one.

        The text of a reply is what came since the one before; its other fields describe the whole answer as
        far as it is known by then. Nothing is sent before the first piece is asked for. Closing the
        generator, or cancelling the task that waits for it, aborts the call and leaves nothing running.

        Args:
            deployment: As for :meth:`Provider.generate`.
            request: As for :meth:`Provider.generate`.
            dispatched: As for :meth:`Provider.generate`.

        Raises:
            ProviderError: The call failed, before the first piece or after any, or the answer broke off.
        """
        ...


@runtime_checkable
class MeteredProvider(Provider, Protocol):
    """A provider that knows which features of a request have quotas of their own, such as its search."""

    def features(self, request: Request, /) -> Collection[str]:
        """Return the names of such features that a request uses, without I/O.

        They are those that a :class:`~llm_router.errors.ProviderError` may give as its ``feature``. While a
        project has no quota for one of them, requests that use it are not sent there. It is asked only while
        that is so somewhere; of other providers, each request is refused once before its features are known.
        """
        ...


@runtime_checkable
class DispatchingProvider(Provider, Protocol):
    """A provider that can be relied on to report each request before it is on the wire.

    Attributes:
        reports_dispatch: Whether ``dispatched`` is called before the whole of any request has left. What is
            cancelled, or runs out of time, before it is called then uses no quota; of other providers it
            counts as sent from the moment that they are called. It holds for the methods of the class that
            says so: a subclass that overrides ``generate``, ``stream`` or ``relay`` says it again if it still
            is true.
    """

    reports_dispatch: bool


@attrs.frozen(kw_only=True)
class RelayRequest:
    """An HTTP exchange as its provider reads it, before a deployment is chosen.

    Attributes:
        exchange: The exchange.
        method: What a model must be able to do for it, such as ``generateContent``; empty for anything.
        model: The model that it names, or None.
        workload: The workload that it names in place of a model, or None.
        streams: Whether the answer is read while it comes.
        requests: How many requests of a quota it takes: 0 for one that the provider does not count.
        is_portable: Whether another model may answer than the one that it names.
        resources: The names of what it needs that belongs to one project, such as ``files/abc``.
        feature: What it uses that a deployment may lack while the rest of it works, such as a version of the
            API; empty for nothing. An error with it as its feature has later requests go elsewhere first.
        request: The same as a request of a send, to estimate its tokens and to report it.
        details: What the provider wants to remember of it.
    """

    exchange: Exchange
    method: str
    model: str | None = None
    workload: str | None = None
    streams: bool = False
    requests: int = 1
    is_portable: bool = True
    resources: tuple[str, ...] = ()
    feature: str = ""
    request: Request = attrs.field(repr=False)
    details: Any = attrs.field(default=None, repr=False, eq=False)


@runtime_checkable
class RelayingProvider(Provider, Protocol):
    """A provider that can forward an HTTP exchange as it is, with the key of a deployment."""

    def read_exchange(self, exchange: Exchange) -> RelayRequest:
        """Read what an exchange asks for, without I/O.

        Raises:
            InvalidRequestError: It cannot be forwarded: the path, the method or the body is wrong.
        """
        ...

    def relay(
        self, deployment: Deployment, relayed: RelayRequest, dispatched: Callable[[], None], /
    ) -> AsyncGenerator[Reply]:
        """Send an exchange once through ``deployment``, and yield its answer.

        The first reply has a :class:`~llm_router.domain.exchange.Head` as its ``raw``, every further one
        bytes of the body, as they came; their texts are empty. After a head that has the whole body nothing
        more is asked for. No reply is yielded before it is known, as far as possible, that the answer is not
        a failure.

        Args:
            deployment: As for :meth:`Provider.generate`.
            relayed: What to send.
            dispatched: As for :meth:`Provider.generate`.

        Raises:
            ProviderError: The call failed, before the first reply or after any, or the answer broke off. An
                answer of the provider that the client may get is the error's ``body``; an error that the
                client has read in the answer itself is ``told``.
        """
        ...

    def answer(self, exchange: Exchange, error: LLMRouterError, /) -> tuple[Head, bytes]:
        """Return the answer, in the protocol of an exchange, that says why the provider has given none."""
        ...


class Queries(Protocol):
    """Forms the exchanges that ask a provider for other things than answers, and reads what comes back.

    What reads an answer raises :class:`~llm_router.errors.ProviderError` if it is none.
    """

    def embedding(self, model: str, texts: Sequence[str], config: Mapping[str, Any], /) -> Exchange:
        """Return the request for the embeddings of at most a hundred texts."""
        ...

    def read_embeddings(self, body: bytes, count: int, /) -> tuple[Vector, ...]:
        """Return ``count`` embeddings, in the order of the texts."""
        ...

    def count(self, model: str, request: Request, /) -> Exchange:
        """Return the request for the number of tokens of a prompt."""
        ...

    def read_count(self, body: bytes, /) -> int:
        """Return a number of tokens."""
        ...

    def models(self, page: str, /) -> Exchange:
        """Return the request for a page of the list of models; the first one has an empty name."""
        ...

    def read_models(self, body: bytes, /) -> tuple[list[ModelInfo], str]:
        """Return the models of a page, and the name of the next page, empty if there is none."""
        ...


@runtime_checkable
class QueriedProvider(RelayingProvider, Protocol):
    """A provider that embeds, counts tokens and lists its models by exchanges that it relays."""

    @property
    def queries(self) -> Queries:
        """How that is asked."""
        ...


@runtime_checkable
class PreparedProvider(Provider, Protocol):
    """A provider with slow work to do once, such as importing an SDK.

    A router has it done before its first request; without a router, the provider does it when needed.
    """

    async def prepare(self) -> None:
        """Do the work without blocking the event loop. Further calls do nothing."""
        ...
