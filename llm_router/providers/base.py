"""The port between the engine and a provider's SDK."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, runtime_checkable

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.kinds import FailureKind
from llm_router.domain.request import Request
from llm_router.domain.response import Usage

__all__ = ["FailureKind", "PreparedProvider", "Provider", "Reply", "StreamingProvider"]


@attrs.frozen
class Reply:
    """What a provider answered.

    Attributes:
        text: The answer's text; may be empty, as with a function call.
        usage: Tokens as the provider counted them, or None when it did not say.
        finish_reason: The provider's word for why the answer ended.
        model: The model that really ran, or None when the provider did not say.
        blocked: Why prompt or answer was blocked, or None when it was not.
        content: The answer as contents that a later request can send back, whatever its key and model
            (a plain dictionary); None where there is nothing to send back but the text.
        raw: The SDK's own response object.
    """

    text: str
    usage: Usage | None = None
    finish_reason: str | None = None
    model: str | None = None
    blocked: str | None = None
    content: Any = attrs.field(default=None, repr=False, eq=False)
    raw: Any = attrs.field(default=None, repr=False, eq=False)


class Provider(Protocol):
    """Sends requests; implement it to route to another service.

    A provider never retries: the router is the only one that does. It never lets an error of its SDK out: it
    raises :class:`~llm_router.errors.ProviderError`, which carries neither the key nor (in ``__cause__``,
    ``__context__`` or its traceback) any object that does.
    """

    async def generate(self, deployment: Deployment, request: Request, launched: Callable[[], None]) -> Reply:
        """Send ``request`` once through ``deployment``.

        Cancellation aborts the call, and nothing is left running.

        Args:
            deployment: Through what.
            request: What.
            launched: To be called when the request is on its way. Only a few requests of a router are
                between reservation and network at a time, so that quota is counted when it is really used;
                a provider that does not call it holds up others for a moment.

        Raises:
            ProviderError: It failed, and how.
        """
        ...

    def validate(self, request: Request) -> None:
        """Check ``request`` as far as it can be checked without sending it; called before quota is taken.

        Raises:
            InvalidRequestError: It is wrong, and no key or model would make it right.
        """
        ...

    def estimate_tokens(self, request: Request) -> int:
        """Estimate the input tokens of ``request``, at least 1, without blocking and without I/O."""
        ...

    async def aclose(self) -> None:
        """Close connections. May be called twice."""
        ...


@runtime_checkable
class StreamingProvider(Provider, Protocol):
    """A provider that can tell an answer while it comes.

    One that is no such provider streams all the same: its answers come in one piece.
    """

    def stream(
        self, deployment: Deployment, request: Request, launched: Callable[[], None]
    ) -> AsyncGenerator[Reply]:
        """Send ``request`` once through ``deployment`` and yield its answer piece by piece, at least one.

        The text of a reply is what came since the one before; everything else is what is known by then of
        the answer as a whole. Nothing is sent before the first piece is asked for. Closing the generator, or
        cancelling who waits for it, aborts the call, and nothing is left running.

        Args:
            deployment: As for :meth:`Provider.generate`.
            request: As for :meth:`Provider.generate`.
            launched: As for :meth:`Provider.generate`.

        Raises:
            ProviderError: It failed, before the first piece or after any, or the answer broke off.
        """
        ...


@runtime_checkable
class PreparedProvider(Provider, Protocol):
    """A provider that has something to do, once, which takes long: importing an SDK, say.

    A router has it done before its first request; where nobody did, the provider does it by itself.
    """

    async def prepare(self) -> None:
        """Do it, without blocking the event loop. May be called again, and does nothing then."""
        ...
