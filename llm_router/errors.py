"""Every error this library raises, in one tree.

::

    LLMRouterError
    ├── ConfigError                     keys.json, .env or an environment variable is wrong
    ├── InvalidRequestError             the arguments of a call are wrong (also a ValueError)
    │   ├── UnknownWorkloadError
    │   └── UnknownModelError
    ├── RouterClosedError               the router was used after ``aclose()``
    ├── SendError                       why a send did not succeed; what ``Response.error`` holds
    │   ├── QuotaExhaustedError         no deployment has room: who, why, and from when
    │   ├── DeadlineExceededError       ``timeout`` ran out
    │   ├── BlockedError                the provider blocked the prompt or the answer
    │   └── ProviderError               the provider failed
    └── StoreError                      the state store failed
        ├── StoreUnavailableError       it does not answer in time, or at all
        └── StoreCorruptError           what it holds is not this library's state

No message, argument or traceback of these errors ever carries an API key.
"""

from __future__ import annotations

import attrs

__all__ = [
    "BlockedError",
    "ConfigError",
    "DeadlineExceededError",
    "InvalidRequestError",
    "LLMRouterError",
    "ProviderError",
    "QuotaExhaustedError",
    "QuotaViolation",
    "RefusedCandidate",
    "RouterClosedError",
    "SendError",
    "StoreCorruptError",
    "StoreError",
    "StoreUnavailableError",
    "UnknownModelError",
    "UnknownWorkloadError",
]


class LLMRouterError(Exception):
    """The root of the tree: catch it to catch everything this library raises on purpose."""


class ConfigError(LLMRouterError):
    """The configuration is wrong; the message names the file, the entry and the remedy."""


class InvalidRequestError(LLMRouterError, ValueError):
    """The arguments of a call are wrong. Raised at once, before any quota is taken."""


class UnknownWorkloadError(InvalidRequestError):
    """The workload is none of the configured ones."""


class UnknownModelError(InvalidRequestError):
    """No deployment serves the preferred model."""


class RouterClosedError(LLMRouterError):
    """The router was used after it had been closed."""


class SendError(LLMRouterError):
    """Why a send did not succeed.

    Attributes:
        retry_after: Seconds until another try may succeed, or None where waiting does not help.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        # The arguments of the subclasses are keyword-only, which pickle cannot pass by itself.
        return _restore, (type(self), self.args, vars(self))


@attrs.frozen
class RefusedCandidate:
    """Why one deployment could not take a request.

    Attributes:
        key_id: The key of the deployment.
        model: Its model.
        reason: What refused the request, in words.
        retry_after: Seconds until that reason is gone, or None for never.
    """

    key_id: str
    model: str
    reason: str
    retry_after: float | None


class QuotaExhaustedError(SendError):
    """No deployment that the request may use has room for it.

    Attributes:
        candidates: One line for every deployment that was considered.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, candidates: tuple[RefusedCandidate, ...] = ()
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.candidates = candidates


class DeadlineExceededError(SendError):
    """The ``timeout`` of the send ran out before an answer came."""


class BlockedError(SendError):
    """The provider blocked the prompt or the answer; no fault of the key.

    Attributes:
        reason: The provider's own word for it, such as ``SAFETY``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@attrs.frozen
class QuotaViolation:
    """One quota that the provider says was exceeded.

    Attributes:
        metric: ``rpm``, ``tpm``, ``rpd``, ``tpd``, or None when the provider's id is not understood.
        limit: The limit that the provider stated, or None when it stated none.
    """

    metric: str | None
    limit: int | None


class ProviderError(SendError):
    """The provider failed.

    Provider adapters raise it; the engine reads it to decide what to do next; the caller finds the last
    one in ``Response.error``.

    Attributes:
        kind: One of :class:`llm_router.providers.FailureKind`.
        code: The HTTP status, or None when no answer came.
        status: The provider's own status word, such as ``RESOURCE_EXHAUSTED``.
        retry_delay: Seconds that the provider asked to wait, or None when it did not say.
        violations: The quotas that the provider named.
        charged: Whether the request may have used quota. False only when nothing can have arrived.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        code: int | None = None,
        status: str | None = None,
        retry_delay: float | None = None,
        violations: tuple[QuotaViolation, ...] = (),
        charged: bool = True,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.status = status
        self.retry_delay = retry_delay
        self.violations = violations
        self.charged = charged


class StoreError(LLMRouterError):
    """The state store failed."""


class StoreUnavailableError(StoreError):
    """The store does not answer in time, or cannot be reached."""


class StoreCorruptError(StoreError):
    """What the store holds is not this library's state; it was left as it was."""


def _restore(kind: type[SendError], args: tuple[object, ...], state: dict[str, object]) -> SendError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error
