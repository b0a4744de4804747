"""The faults that the emulator can show, and the rules for which requests have them."""

from __future__ import annotations

import random
import threading
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import attrs

from llm_router.gemini_http.framing import dump
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["GENERATE_METHODS", "Fault", "FaultKind", "FaultRule", "FaultRules"]

GENERATE_METHODS: frozenset[str] = frozenset(
    {Operation.GENERATE, Operation.STREAM, Operation.CHAT, Operation.CREATE_INTERACTION}
)
"""The methods a fault applies to by default: those that generate, on the paths of each protocol."""

_CLIENT_ERRORS = range(400, 500)
_FINAL_STATUSES = range(200, 1000)
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_FRAMING_HEADERS = frozenset({"connection", "content-length", "transfer-encoding"})


class FaultKind(StrEnum):
    """What goes wrong."""

    DELAY = "delay"
    DROP = "drop"
    HANG = "hang"
    CUT_JSON = "cut_json"
    STATUS = "status"
    BLOCK = "block"
    SAFETY = "safety"
    NO_CONTENT = "no_content"
    EMPTY = "empty"
    BARE_429 = "bare_429"
    LIST_429 = "list_429"
    STREAM_CUT = "stream_cut"
    STREAM_DROP = "stream_drop"
    STREAM_ERROR = "stream_error"
    STREAM_HANG = "stream_hang"

    @property
    def needs_stream(self) -> bool:
        """Whether only a streamed answer can show the fault."""
        return self.value.startswith("stream_")


@attrs.frozen
class Fault:
    """Something that goes wrong with a request. Made by the class methods.

    Attributes:
        kind: What goes wrong.
        code: The HTTP status of the answer, if there is one.
        reason: The block reason of a blocked prompt, or the finishReason of an answer without content.
        seconds: Seconds on the emulator's clock before the fault shows. Every fault may have them:
            ``attrs.evolve(Fault.status(503), seconds=2)``.
        after: The number of chunks of a stream that are sent first.
        counted: Whether the request uses quota, and so may be refused by one before the fault shows.
        body: The body of the answer; None is the usual error for ``code``.
        headers: The headers of the answer, names in lower case, besides those that frame the body.
    """

    kind: FaultKind
    code: int = 200
    reason: str = "SAFETY"
    seconds: float = 0.0
    after: int = 1
    counted: bool = True
    body: bytes | None = attrs.field(default=None, repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), repr=False)

    @classmethod
    def delay(cls, seconds: float) -> Self:
        """Answer normally, but ``seconds`` later on the emulator's clock."""
        return cls(FaultKind.DELAY, seconds=seconds)

    @classmethod
    def drop(cls, *, counted: bool = True) -> Self:
        """Close the TCP connection without answering."""
        return cls(FaultKind.DROP, counted=counted)

    @classmethod
    def hang(cls) -> Self:
        """Do not answer until the emulator releases its hanging requests or stops."""
        return cls(FaultKind.HANG)

    @classmethod
    def cut_json(cls, code: int = 200) -> Self:
        """Answer with the status ``code`` and the first half of its JSON body."""
        return cls(FaultKind.CUT_JSON, code=code, counted=_uses_quota(code))

    @classmethod
    def status(
        cls,
        code: int,
        *,
        body: bytes | str | dict[str, Any] | list[Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Answer with this HTTP status, with the provider's usual error or with a given body.

        The usual errors blame the key (401), its project (403), the model (404) or the requests of this
        minute (429, which states no limit), as the provider words them. A status from 400 to 499 uses no
        quota; any other does.

        Args:
            code: The status; 200 for an answer that is not a failure to HTTP.
            body: The body: bytes, text, or an object to send as JSON. None is the usual error.
            headers: Headers of the answer, such as ``Retry-After``. The content type is that of JSON unless
                it is given; headers that frame the body are left out, so that those of a recorded answer
                may be passed as they are.

        Raises:
            ValueError: ``code`` is not a final HTTP status or cannot have this body, or a header is not in
                Latin-1.
        """
        if code not in _FINAL_STATUSES:
            raise ValueError(f"code must be a final HTTP status, from 200 to 999, not {code!r}")
        if code in _WITHOUT_BODY:
            if body:
                raise ValueError(f"an answer with the status {code!r} has no body")
            body = b""
        return cls(
            FaultKind.STATUS,
            code=code,
            counted=_uses_quota(code),
            body=_encoded(body),
            headers=tuple(
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in (headers or {}).items()
                if name.lower() not in _FRAMING_HEADERS
            ),
        )

    @classmethod
    def block(cls, reason: str = "SAFETY") -> Self:
        """Block the prompt: send a ``promptFeedback`` and no candidates."""
        return cls(FaultKind.BLOCK, reason=reason)

    @classmethod
    def safety(cls) -> Self:
        """Block the answer: send a candidate without content and with the finishReason SAFETY."""
        return cls(FaultKind.SAFETY)

    @classmethod
    def no_content(cls, reason: str = "MAX_TOKENS") -> Self:
        """Answer with a candidate that has this finishReason and no content; without one if it is empty."""
        return cls(FaultKind.NO_CONTENT, reason=reason)

    @classmethod
    def empty(cls) -> Self:
        """Answer with a 200 and an empty body."""
        return cls(FaultKind.EMPTY)

    @classmethod
    def bare_429(cls) -> Self:
        """Answer with a 429 that has no details, and so does not say which quota was exceeded."""
        return cls(FaultKind.BARE_429, code=429, counted=False)

    @classmethod
    def list_429(cls) -> Self:
        """Answer with a 429 whose body is a list with one error."""
        return cls(FaultKind.LIST_429, code=429, counted=False)

    @classmethod
    def stream_cut(cls, after: int = 1) -> Self:
        """End a stream cleanly after ``after`` chunks, without a finishReason."""
        return cls(FaultKind.STREAM_CUT, after=after)

    @classmethod
    def stream_drop(cls, after: int = 1) -> Self:
        """Close the TCP connection after ``after`` chunks of a stream."""
        return cls(FaultKind.STREAM_DROP, after=after)

    @classmethod
    def stream_error(cls, code: int = 503, after: int = 1) -> Self:
        """Send the usual error of ``code`` as a chunk of a stream, after ``after`` normal ones."""
        return cls(FaultKind.STREAM_ERROR, code=code, after=after)

    @classmethod
    def stream_hang(cls, after: int = 1) -> Self:
        """Pause after ``after`` chunks of a stream until released, then send the rest."""
        return cls(FaultKind.STREAM_HANG, after=after)


def _uses_quota(code: int) -> bool:
    return code not in _CLIENT_ERRORS


def _encoded(body: bytes | str | dict[str, Any] | list[Any] | None) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return body.encode() if isinstance(body, str) else dump(body)


@attrs.define(eq=False)
class FaultRule:
    """A fault and the requests it applies to.

    Attributes:
        fault: What goes wrong.
        model: The model of the requests; None is any.
        methods: The methods of the requests, such as ``generateContent`` or ``files.get``; None is any.
        left: The number of requests still to have the fault; None is unlimited.
        share: The share (0 to 1) of them that are to have it, drawn at random.
        taken: The number of requests that have had the fault.
    """

    fault: Fault
    model: str | None = None
    methods: Collection[str] | None = GENERATE_METHODS
    left: int | None = None
    share: float = 1.0
    taken: int = 0
    _key: str | None = attrs.field(default=None, repr=False)

    def matches(self, model: str, key: str, method: str, *, streams: bool) -> bool:
        """Return whether a request with ``key`` to ``model`` is to have the fault: a share is drawn."""
        return (
            self.left != 0
            and self.model in (None, model)
            and self._key in (None, key)
            and (self.methods is None or method in self.methods)
            and (streams or not self.fault.kind.needs_stream)
            and (self.share == 1.0 or random.random() < self.share)  # noqa: S311 - no secret depends on it
        )

    def take(self) -> Fault:
        """Count one more request that has the fault, and return the fault."""
        self.taken += 1
        if self.left is not None:
            self.left -= 1
        return self.fault


class FaultRules:
    """The rules in force, oldest first. A request gets the oldest one that matches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: tuple[FaultRule, ...] = ()

    def add(self, rule: FaultRule) -> None:
        """Add a rule. May be called from any thread."""
        with self._lock:
            self._rules = (*(kept for kept in self._rules if kept.left != 0), rule)

    def clear(self) -> None:
        """Remove all rules. May be called from any thread."""
        with self._lock:
            self._rules = ()

    def match(self, model: str, key: str, method: str, *, streams: bool) -> FaultRule | None:
        """Return the rule for a request, without using it up."""
        rules = self._rules
        return next((rule for rule in rules if rule.matches(model, key, method, streams=streams)), None)
