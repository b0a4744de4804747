"""Remember the last failures of each key, in words that quote neither a prompt nor a credential."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.domain.status import FailureStatus
from llm_router.domain.wording import span
from llm_router.errors import ProviderError, SendError

__all__ = ["FAILURES_KEPT", "FailureLog", "in_words"]

FAILURES_KEPT = 10
"""How many failures of one key are remembered."""

_KEYS = 10_000
"""Most keys whose failures are remembered: the last ones that failed."""

_WORDS = {
    FailureKind.REQUEST: "the request is wrong",
    FailureKind.KEY: "the key is refused",
    FailureKind.MODEL: "the model does not exist for this project, or is denied to it",
    FailureKind.QUOTA: "a quota is spent",
    FailureKind.SERVER: "the model is overloaded or broken",
    FailureKind.NETWORK: "the connection broke, or what came back is not an answer",
    FailureKind.TIMEOUT: "no answer came in time",
}


class FailureLog:
    """The last ten failures of each key, kept by this process.

    Attributes:
        untold: The providers and ids of the keys of which there are failures that others do not know.
        on_note: Called when one is noted, or None.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[tuple[str, str], deque[FailureStatus]] = OrderedDict()
        self.untold: dict[tuple[str, str], None] = {}
        self.on_note: Callable[[], None] | None = None

    def note(self, deployment: Deployment, error: SendError, at: float) -> None:
        """Note a failure of a key; one that is the request's own fault says nothing of it.

        Args:
            deployment: What was tried.
            error: What came of it.
            at: When it ended, in seconds since the Unix epoch.
        """
        if isinstance(error, ProviderError) and error.scope is FaultScope.REQUEST:
            return
        name = deployment.key.provider, deployment.key.key_id
        known = self._by_key.setdefault(name, deque(maxlen=FAILURES_KEPT))
        self._by_key.move_to_end(name)
        if len(self._by_key) > _KEYS:
            self.untold.pop(self._by_key.popitem(last=False)[0], None)
        kind, code = FailureKind.TIMEOUT, None
        if isinstance(error, ProviderError):
            kind, code = error.kind, error.code
        known.append(
            FailureStatus(at=at, model=deployment.model, kind=kind.value, code=code, words=in_words(error))
        )
        self.untold[name] = None
        if self.on_note is not None:
            self.on_note()

    def of(self, key: Key) -> list[FailureStatus]:
        """Return the last failures of a key, the latest first."""
        return self.of_id(key.provider, key.key_id)

    def of_id(self, provider: str, key_id: str) -> list[FailureStatus]:
        """Return the last failures of the key that has this id, the latest first."""
        return [*reversed(self._by_key.get((provider, key_id), ()))]


def in_words(error: SendError) -> str:
    """Say what failed: never with the provider's own text, which may quote the request."""
    if not isinstance(error, ProviderError):
        return _WORDS[FailureKind.TIMEOUT]
    words = _WORDS[error.kind]
    if error.violations:
        named = (
            (each.metric.value if each.metric is not None else "unknown")
            + ("" if each.limit is None else f" (limit {each.limit})")
            for each in error.violations
        )
        words += f": {', '.join(dict.fromkeys(named))}"
    if error.feature is not None:
        words += f" for {error.feature}"
    if error.retry_delay is not None:
        words += f"; the provider says to try again in {span(error.retry_delay)}"
    return words
