"""Faults that a test asks the emulator for, and the requests they are meant for."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Self

import attrs

from llm_router.gemini_http.routes import Method

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["GENERATE_METHODS", "Fault", "FaultBook", "FaultKind", "FaultRule"]

GENERATE_METHODS: frozenset[str] = frozenset({Method.GENERATE, Method.STREAM})
"""The methods a fault is meant for unless it says otherwise."""

_CLIENT_ERRORS = range(400, 500)


class FaultKind(StrEnum):
    """What goes wrong."""

    DELAY = "delay"
    DROP = "drop"
    HANG = "hang"
    CUT_JSON = "cut_json"
    STATUS = "status"
    BLOCK = "block"
    SAFETY = "safety"
    EMPTY = "empty"
    BARE_429 = "bare_429"
    LIST_429 = "list_429"
    STREAM_CUT = "stream_cut"
    STREAM_DROP = "stream_drop"
    STREAM_ERROR = "stream_error"
    STREAM_HANG = "stream_hang"

    @property
    def needs_stream(self) -> bool:
        """Whether only a streamed answer can show it."""
        return self.value.startswith("stream_")


@attrs.frozen
class Fault:
    """One thing that goes wrong with one request. Made by its class methods.

    Attributes:
        kind: What goes wrong.
        code: The HTTP status of the answer, where there is one.
        reason: The block reason of a blocked prompt.
        seconds: How long the answer is held back first, on the emulator's clock. Any fault may have it:
            ``attrs.evolve(Fault.status(503), seconds=2)``.
        after: How many chunks of a stream are sent first.
        counted: Whether the request uses quota, and so may be refused by it, before the fault shows.
    """

    kind: FaultKind
    code: int = 200
    reason: str = "SAFETY"
    seconds: float = 0.0
    after: int = 1
    counted: bool = True

    @classmethod
    def delay(cls, seconds: float) -> Self:
        """Answer properly, but only ``seconds`` later on the emulator's clock."""
        return cls(FaultKind.DELAY, seconds=seconds)

    @classmethod
    def drop(cls, *, counted: bool = True) -> Self:
        """Close the TCP connection without an answer."""
        return cls(FaultKind.DROP, counted=counted)

    @classmethod
    def hang(cls) -> Self:
        """Do not answer until the emulator releases its hanging requests or stops."""
        return cls(FaultKind.HANG)

    @classmethod
    def cut_json(cls, code: int = 200) -> Self:
        """Answer with a proper status ``code`` and half of the JSON body."""
        return cls(FaultKind.CUT_JSON, code=code, counted=_uses_quota(code))

    @classmethod
    def status(cls, code: int) -> Self:
        """Answer with the error that the provider sends with this status.

        401, 403 and 404 blame the key, its project and the model, 429 the requests of this minute, as the
        provider words them. Errors from 500 on use quota, those below do not.
        """
        return cls(FaultKind.STATUS, code=code, counted=_uses_quota(code))

    @classmethod
    def block(cls, reason: str = "SAFETY") -> Self:
        """Block the prompt: a ``promptFeedback`` and no candidates."""
        return cls(FaultKind.BLOCK, reason=reason)

    @classmethod
    def safety(cls) -> Self:
        """Block the answer: a candidate without content whose finishReason is SAFETY."""
        return cls(FaultKind.SAFETY)

    @classmethod
    def empty(cls) -> Self:
        """Answer 200 with no body at all."""
        return cls(FaultKind.EMPTY)

    @classmethod
    def bare_429(cls) -> Self:
        """Refuse without saying which quota: a 429 that has no details."""
        return cls(FaultKind.BARE_429, code=429, counted=False)

    @classmethod
    def list_429(cls) -> Self:
        """Refuse with a body that is a list holding the one error."""
        return cls(FaultKind.LIST_429, code=429, counted=False)

    @classmethod
    def stream_cut(cls, after: int = 1) -> Self:
        """End a stream cleanly after that many chunks, with no finishReason."""
        return cls(FaultKind.STREAM_CUT, after=after)

    @classmethod
    def stream_drop(cls, after: int = 1) -> Self:
        """Close the TCP connection after that many chunks of a stream."""
        return cls(FaultKind.STREAM_DROP, after=after)

    @classmethod
    def stream_error(cls, code: int = 503, after: int = 1) -> Self:
        """Send the error of ``code`` as a chunk of a stream, after that many proper ones."""
        return cls(FaultKind.STREAM_ERROR, code=code, after=after)

    @classmethod
    def stream_hang(cls, after: int = 1) -> Self:
        """Stop after that many chunks of a stream until released, then send the rest."""
        return cls(FaultKind.STREAM_HANG, after=after)


def _uses_quota(code: int) -> bool:
    return code not in _CLIENT_ERRORS


@attrs.define(eq=False)
class FaultRule:
    """A fault and the requests that it is meant for.

    Attributes:
        fault: What goes wrong.
        model: Only for this model; None is any.
        methods: Only for these methods, such as ``generateContent``; None is any.
        left: How many more requests it is for; None is any number.
        taken: How many requests had it so far.
    """

    fault: Fault
    model: str | None = None
    methods: Collection[str] | None = GENERATE_METHODS
    left: int | None = None
    taken: int = 0
    _key: str | None = attrs.field(default=None, repr=False)

    def matches(self, model: str, key: str, method: str) -> bool:
        """Tell whether a request of ``key`` to ``model`` is to have the fault."""
        return (
            self.left != 0
            and self.model in (None, model)
            and self._key in (None, key)
            and (self.methods is None or method in self.methods)
            and (not self.fault.kind.needs_stream or method == Method.STREAM)
        )

    def take(self) -> Fault:
        """Count one request more that has the fault, and return it."""
        self.taken += 1
        if self.left is not None:
            self.left -= 1
        return self.fault


class FaultBook:
    """The faults in force, oldest first; the oldest that matches a request is the one it gets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: tuple[FaultRule, ...] = ()

    def add(self, rule: FaultRule) -> None:
        """Put a fault in force. May be called from any thread."""
        with self._lock:
            self._rules = (*(kept for kept in self._rules if kept.left != 0), rule)

    def clear(self) -> None:
        """Let nothing go wrong from now on. May be called from any thread."""
        with self._lock:
            self._rules = ()

    def match(self, model: str, key: str, method: str) -> FaultRule | None:
        """Return the rule for a request, without using it up."""
        return next((rule for rule in self._rules if rule.matches(model, key, method)), None)
