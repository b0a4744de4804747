"""What a caller gets back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs

from llm_router.domain.answers import FunctionCall, Step, calls_in, parts_of
from llm_router.errors import SendError

__all__ = ["Attempt", "Chunk", "Deferred", "PassedOver", "Response", "Usage", "resolved"]


class Deferred(ABC):
    """An object of the provider that is made when it is first read."""

    __slots__ = ()

    @abstractmethod
    def get(self) -> Any:
        """Return the object: the same one every time."""


def resolved(value: Any) -> Any:
    """Return an object of the provider; one that is deferred is made."""
    return value.get() if isinstance(value, Deferred) else value


@attrs.frozen
class Usage:
    """Tokens as the provider counted them; 0 if it did not say.

    Attributes:
        input_tokens: The prompt, with system instruction, history and tool results.
        output_tokens: The answer.
        thinking_tokens: Thoughts, which are billed as output.
        cached_tokens: The part of the input that came from a cache.
        total_tokens: The provider's own total.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0
    total_tokens: int = 0


@attrs.frozen
class PassedOver:
    """A deployment that was asked before the one that was taken, and had no room.

    Attributes:
        key_id: The key.
        model: The model.
        reason: A metric, such as ``"rpm"``, or the reason of a cooldown.
        retry_at: When the request would have fitted, in seconds since the epoch; ``math.inf`` for never.
    """

    key_id: str
    model: str
    reason: str
    retry_at: float


@attrs.frozen(slots=False)  # as with a response: one is made in every send, and seldom read
class Attempt:
    """One request that went to the provider, and why it went there.

    What limits a deployment has, and how they are known, say :meth:`Router.explain` and the statuses.

    Attributes:
        key_id: The key used.
        model: The model asked.
        latency: Seconds until it ended.
        error: What went wrong, or None.
        metadata: What the caller gave as ``metadata``; empty if nothing.
        priority: The deployment's priority; lower numbers are tried first.
        tokens: Input tokens that were reserved.
        headroom: Share (0 to 1) of its tightest quota per minute that remained once the request had taken its
            own, as the store counted; 1 where there is none.
        daily_headroom: The same for its tightest quota per day.
        passed_over: Those that were asked before it in vain, best first, at most 8.
    """

    key_id: str
    model: str
    latency: float
    error: SendError | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    priority: int = attrs.field(default=0, eq=False)
    tokens: int = attrs.field(default=0, eq=False)
    headroom: float = attrs.field(default=1.0, eq=False)
    daily_headroom: float = attrs.field(default=1.0, eq=False)
    passed_over: tuple[PassedOver, ...] = attrs.field(default=(), eq=False)


@attrs.frozen
class Chunk:
    """A piece of a streamed answer.

    Attributes:
        text: Its text; may be empty, as with a function call.
        source: What ``raw`` is made from.
    """

    text: str
    source: Any = attrs.field(default=None, alias="raw", repr=False, eq=False)

    @property
    def raw(self) -> Any:
        """The provider's own object for it, or None. It may be made only when it is asked for."""
        return resolved(self.source)


# With slots, each field of a frozen class costs a call, which is a twentieth of a send together.
@attrs.frozen(kw_only=True, slots=False)
class Response:
    """The outcome of a send, successful or not.

    Attributes:
        success: Whether there is an answer.
        model: The model that answered (the provider's own name of what ran), or that was tried last.
        key_id: The key that was used last, or None if no request was sent.
        workload: The workload of the deployment that was used last, or the one asked for.
        usage: Tokens as the provider counted them.
        finish_reason: The provider's word for why the answer ended.
        attempts: Requests that were sent to the provider for this response.
        attempt_log: One entry for each of them, in order.
        latency: Seconds from the call to the outcome, waiting included.
        waited: Seconds of it spent waiting for capacity.
        error: Why there is no answer, or None.
        retry_after: Seconds until another try may succeed; None on success or if waiting does not help.
        source: What ``raw`` is made from.
        steps: The answers before this one that called functions of yours, each with what these returned, if
            the request had functions to call. The usage and the attempts of all of them are in this response.
    """

    success: bool
    model: str | None = None
    key_id: str | None = None
    workload: str | None = None
    usage: Usage = Usage()
    finish_reason: str | None = None
    attempts: int = 0
    attempt_log: tuple[Attempt, ...] = attrs.field(default=(), repr=False)
    latency: float = 0.0
    waited: float = 0.0
    error: SendError | None = None
    retry_after: float | None = None
    source: Any = attrs.field(default=None, alias="raw", repr=False, eq=False)
    cached: bool = False
    """Whether a cache of the router gave the answer, or the call of an equal request that was under way.
    Nothing was sent or used for this one then, and ``raw`` may be missing."""

    answer: str = attrs.field(default="", repr=False)
    """The text of a successful response; ``""`` otherwise. :attr:`text` raises instead of being empty."""

    content: Any = attrs.field(default=None, repr=False, eq=False)
    """The answer as contents that a later request can send back (a dictionary with ``role`` and ``parts``),
    or None. Signatures in it are only for the model that gave it: a conversation sees to that."""

    parsed: Any = attrs.field(default=None, repr=False, eq=False)
    """What the answer says in the form that ``config`` asked for: an object of the type given as
    ``response_schema`` (which asks for JSON by itself), or the value of its JSON; None if no form was asked
    for, and where functions are called. An answer without that form is not a success: ``error.reason`` is
    ``NOT_JSON`` or ``SCHEMA_MISMATCH``, and ``error.text`` the answer."""

    steps: tuple[Step, ...] = attrs.field(default=(), repr=False)

    @property
    def raw(self) -> Any:
        """The provider's own response object, or None. It may be made only when it is asked for."""
        return resolved(self.source)

    @property
    def text(self) -> str:
        """The answer.

        Raises:
            SendError: The ``error`` of an unsuccessful response.
        """
        self.raise_for_error()
        return self.answer

    @property
    def parts(self) -> tuple[Any, ...]:
        """The parts of the answer, without thoughts.

        They are dictionaries, such as ``{"text": …}``, ``{"function_call": …}``, or for an image
        ``{"inline_data": {"mime_type": …, "data": …}}`` with bytes as the data.
        """
        return parts_of(self.content)

    @property
    def function_calls(self) -> tuple[FunctionCall, ...]:
        """The functions that the model wants to have called, and that were not called yet."""
        return calls_in(self.content)

    def raise_for_error(self) -> Response:
        """Return this response if it is successful.

        Raises:
            SendError: The ``error`` of an unsuccessful response.
        """
        if self.error is not None:
            raise self.error
        return self
