"""Every error this library raises, in one tree.

::

    LLMRouterError
    ├── ConfigError                     keys.json, .env or an environment variable is wrong
    ├── InvalidRequestError             the arguments of a call are wrong (also a ValueError)
    │   ├── UnknownWorkloadError
    │   ├── UnknownModelError
    │   ├── UnknownKeyError
    │   └── UnknownPathError            the provider has no such path, for an exchange that is relayed
    ├── RouterClosedError               the router was used after ``aclose()``
    ├── HistoryError                    the history store of a conversation failed
    │   └── HistoryConflictError        another process has changed the conversation meanwhile
    ├── RouterLoopError                 the router is in use on another event loop (also a RuntimeError)
    ├── ExtensionError                  a provider or strategy of your own failed (also a RuntimeError)
    ├── SendError                       why a send did not succeed; the type of ``Response.error``
    │   ├── QuotaExhaustedError         no deployment has room: which, why, and until when
    │   ├── DeadlineExceededError       ``timeout`` ran out
    │   ├── BlockedError                the provider blocked the prompt or the answer
    │   ├── EmptyAnswerError            the provider answered without usable content
    │   ├── EmbeddingError              some of several texts could not be embedded
    │   └── ProviderError               the provider failed
    └── StoreError                      the state store failed
        ├── StoreUnavailableError       it does not answer, or accepts no writes
        │   └── StoreTimeoutError       it did not answer one call in time
        ├── StoreCorruptError           its contents are not this library's state
        ├── RecordConflictError         a record is not the version that was to be replaced
        └── RecordTooLargeError         a record is larger than one may be

No message, argument or traceback of these errors ever carries an API key.
"""

from __future__ import annotations

from enum import StrEnum
from numbers import Real
from typing import Any, TypeVar

import attrs

from llm_router.domain.kinds import FailureKind, FaultScope, Metric
from llm_router.domain.numbers import MAX_LIMIT, real, shown, whole

__all__ = [
    "BlockedError",
    "ConfigError",
    "DeadlineExceededError",
    "EmbeddingError",
    "EmptyAnswerError",
    "ExtensionError",
    "HistoryConflictError",
    "HistoryError",
    "InvalidRequestError",
    "LLMRouterError",
    "ProviderError",
    "QuotaExhaustedError",
    "QuotaViolation",
    "RecordConflictError",
    "RecordTooLargeError",
    "RefusedCandidate",
    "RouterClosedError",
    "RouterLoopError",
    "SendError",
    "StoreCorruptError",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UnknownKeyError",
    "UnknownModelError",
    "UnknownPathError",
    "UnknownWorkloadError",
]


_Kind = TypeVar("_Kind", bound=StrEnum)

_USUAL_SCOPES = {
    FailureKind.REQUEST: FaultScope.REQUEST,
    FailureKind.KEY: FaultScope.KEY,
    FailureKind.MODEL: FaultScope.DEPLOYMENT,
    FailureKind.QUOTA: FaultScope.DEPLOYMENT,
    FailureKind.SERVER: FaultScope.DEPLOYMENT,
    FailureKind.NETWORK: FaultScope.PATH,
    FailureKind.TIMEOUT: FaultScope.PATH,
}


def _member(kinds: type[_Kind], word: str, what: str) -> _Kind:
    """Return the member of ``kinds`` that ``word`` names, or raise a ValueError that lists them all."""
    try:
        return kinds(word)
    except ValueError:
        raise ValueError(f"unknown {what} {word!r}: use one of {', '.join(kinds)}") from None


def _metric(word: Metric | str | None) -> Metric | None:
    return None if word is None else _member(Metric, word, "metric")


class LLMRouterError(Exception):
    """The root of the tree: catch it to catch every error this library raises on purpose."""


class ConfigError(LLMRouterError):
    """The configuration is wrong; the message names the file, the entry and the remedy."""


class InvalidRequestError(LLMRouterError, ValueError):
    """The arguments of a call are wrong. Raised at once, before any quota is taken."""


class UnknownWorkloadError(InvalidRequestError):
    """The workload is not a configured one."""


class UnknownModelError(InvalidRequestError):
    """No deployment serves the preferred model."""


class UnknownKeyError(InvalidRequestError):
    """No key has this id."""


class UnknownPathError(InvalidRequestError):
    """The provider has no such path, or not with this HTTP method."""


class RouterClosedError(LLMRouterError):
    """The router was used after it had been closed, or was closed before the request was sent."""


class HistoryError(LLMRouterError):
    """The history store of a conversation failed; its own error is the cause. Nothing was sent."""


class HistoryConflictError(HistoryError):
    """A conversation was changed by another process while this one continued it.

    What the other process has stored stays; the turn of this one is not remembered anywhere. The next send
    continues on what is stored.

    Attributes:
        response: The :class:`~llm_router.Response` that was paid for; None if nothing was sent.
    """

    def __init__(self, *args: object, response: object = None) -> None:
        super().__init__(*args)
        self.response: Any = response


class RouterLoopError(LLMRouterError, RuntimeError):
    """The router was used on an event loop while the one it works on is still open."""


class ExtensionError(LLMRouterError, RuntimeError):
    """A user's provider or strategy raised an error of its own, or returned something it must not.

    The message names the class, the method and the line, but only the type of the error: its text may contain
    a key.
    """


class SendError(LLMRouterError):
    """Why a send did not succeed.

    Attributes:
        retry_after: Seconds until another try may succeed, or None if waiting does not help.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        # Pickle cannot pass the keyword-only arguments of the subclasses by itself.
        return _restore, (type(self), self.args, vars(self))


@attrs.frozen
class RefusedCandidate:
    """Why one deployment could not take a request.

    Attributes:
        key_id: The key of the deployment.
        model: Its model.
        reason: What refused the request, in words.
        retry_after: Seconds until that reason is gone, or None if it stays.
    """

    key_id: str
    model: str
    reason: str
    retry_after: float | None


class QuotaExhaustedError(SendError):
    """No deployment that the request may use has room for it.

    Attributes:
        candidates: The deployments considered, the first to have room again first; of a large pool only
            the soonest.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, candidates: tuple[RefusedCandidate, ...] = ()
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.candidates = candidates


class DeadlineExceededError(SendError):
    """The ``timeout`` of the send ran out before an answer came."""


class BlockedError(SendError):
    """The provider blocked the prompt or the answer; the key is not at fault.

    Attributes:
        reason: The provider's own word for it, such as ``SAFETY``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EmptyAnswerError(SendError):
    """The provider answered, and blocked nothing, but there is no usable content; the key is not at fault.

    Attributes:
        reason: The provider's finish reason, such as ``MALFORMED_FUNCTION_CALL``; ``NO_CANDIDATES``; or, for
            an answer that does not have the form that its request asks for, ``NOT_JSON`` or
            ``SCHEMA_MISMATCH``.
        text: The text of the answer, as far as there is one.
    """

    def __init__(self, message: str, *, reason: str, text: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.text = text


class EmbeddingError(SendError):
    """Some of several texts could not be embedded; the others are here.

    Attributes:
        vectors: One for each text, in order; None for those that are missing.
        model: The model of the vectors, with which the others are to be embedded, too.
    """

    def __init__(
        self,
        message: str,
        *,
        vectors: tuple[tuple[float, ...] | None, ...],
        model: str,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.vectors = vectors
        self.model = model


def _limit(given: int | None) -> int | None:
    limit = whole(given)
    return limit if limit is not None and 0 <= limit <= MAX_LIMIT else None


@attrs.frozen
class QuotaViolation:
    """One quota that the provider says was exceeded.

    Attributes:
        metric: What the quota counts (a plain string is converted), or None if the provider's id is not
            understood.
        limit: The limit that the provider stated, or None if it stated none; what is no whole number from 0
            to ``MAX_LIMIT`` (10^15) counts as not stated.

    Raises:
        ValueError: The metric is a string that does not name a :class:`Metric`.
    """

    metric: Metric | None = attrs.field(converter=_metric)
    limit: int | None = attrs.field(converter=_limit)


class ProviderError(SendError):
    """The provider failed.

    Provider adapters raise it; the engine reads it to decide what to do next; the caller finds the last
    one in ``Response.error``.

    Attributes:
        kind: What kind of failure it was (a plain string is converted).
        scope: What it is about (a plain string is converted). None, when making one, is the usual scope of
            the kind: ``request`` for ``request``; ``key`` for ``key``; ``deployment`` for ``model``,
            ``quota`` and ``server``; ``path`` for ``network`` and ``timeout``.
        feature: The feature of the request that it is about, such as ``google_search``, if the scope is
            ``feature``; otherwise None.
        code: The HTTP status, or None if no answer came.
        status: The provider's own status word, such as ``RESOURCE_EXHAUSTED``.
        retry_delay: Seconds that the provider asked to wait, or None if it did not say.
        violations: The quotas that the provider named.
        lasting: Whether what is blamed is out of use for longer. A suspended project is then tried again once
            a day; one whose credits are spent every 15 minutes, and no limit is learnt from it.
        spending: Whether it is for what the project spent in the last ten minutes, which comes back by
            itself; it is then learnt how many requests that are. The scope must be ``project``.
        charged: Whether the request may have used quota. False if it cannot have arrived, or if the
            provider refused it without counting it, as with a 429: its reservation is then released.
            Otherwise the reservation is settled.
        body: The provider's answer, for a client whose exchange is relayed; empty if there is none. A key in
            it is masked.
        told: Whether that client has read the error in the answer itself.

    Raises:
        ValueError: ``kind`` or ``scope`` is a string that does not name a :class:`FailureKind` or
            :class:`FaultScope`, or ``retry_delay`` is not a number.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind | str,
        code: int | None = None,
        status: str | None = None,
        retry_delay: float | None = None,
        violations: tuple[QuotaViolation, ...] = (),
        charged: bool = True,
        scope: FaultScope | str | None = None,
        feature: str | None = None,
        lasting: bool = False,
        spending: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = _member(FailureKind, kind, "failure kind")
        self.scope = _USUAL_SCOPES[self.kind] if scope is None else _member(FaultScope, scope, "fault scope")
        self.feature = feature
        self.lasting = lasting
        self.spending = spending
        self.code = code
        self.status = status
        self.retry_delay = None if retry_delay is None else _seconds(retry_delay)
        self.violations = violations
        self.charged = charged
        self.body = b""
        self.told = False


def _seconds(delay: object) -> float:
    if not isinstance(delay, Real):
        raise ValueError(f"retry_delay must be a number of seconds, or None, not {shown(delay)}")  # noqa: TRY004
    return real(delay)


class StoreError(LLMRouterError):
    """The state store failed.

    Attributes:
        shard: The number of the shard that failed, or None if the store is not divided or all of it failed.
    """

    def __init__(self, *args: object, shard: int | None = None) -> None:
        super().__init__(*args)
        self.shard = shard


class StoreUnavailableError(StoreError):
    """The store does not answer in time, or cannot be reached, or accepts no writes."""


class StoreTimeoutError(StoreUnavailableError):
    """The store did not answer one call in time; it may answer others."""


class StoreCorruptError(StoreError):
    """The contents of the store are not this library's state; they were left as they were."""


class RecordConflictError(StoreError):
    """A record is not the version that was to be replaced; nothing was changed.

    Attributes:
        version: Its present version; 0 if there is no such record.
    """

    def __init__(self, *args: object, version: int = 0) -> None:
        super().__init__(*args)
        self.version = version


class RecordTooLargeError(StoreError):
    """A record is larger than one of its space may be; nothing was changed."""


def _restore(cls: type[SendError], args: tuple[object, ...], state: dict[str, object]) -> SendError:
    error = cls.__new__(cls, *args)
    vars(error).update(state)
    return error
