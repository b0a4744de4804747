"""Tell a broken path to a provider from broken keys."""

from __future__ import annotations

import attrs

from llm_router.domain.kinds import FailureKind

__all__ = ["FORBIDDEN_WITHIN", "PATH_FAILURES", "CircuitBreaker"]

PATH_FAILURES = (FailureKind.NETWORK, FailureKind.TIMEOUT)
"""Failures of the path to the provider, which say nothing about a key or a model."""

_KEYS = 3
_PROJECTS = 2
_SPAN = 10.0
_FIRST_OPEN, _LONGEST_OPEN = 1.0, 30.0

_IN_DOUBT = 600.0
"""Seconds for which no key is blamed for what several are told alike."""

_UNREACHABLE = "the provider cannot be reached"

FORBIDDEN_WITHIN = _SPAN
"""Seconds within which several keys must be forbidden for that to be the provider's fault."""


@attrs.define
class CircuitBreaker:
    """Stops sending to a provider when several keys in a row cannot reach it, or are all forbidden.

    Three different keys that fail on the network within 10 s, with no success between them, open it for
    1 s. It is half-open afterwards: requests go out again; a success closes it, and the next three failures
    open it for twice as long, up to 30 s.

    So do three different keys of two projects that are all called wrong or forbidden within 10 s, unless all
    of that was about one model of several. No key is blamed then, for ten minutes: if no success comes until
    then, each is what it is called.

    Attributes:
        open_until: Seconds since the epoch until which nothing is sent; in the past while it is not open.
        reason: Why it is open, or was last.
        is_clear: Whether nothing has failed since the last success; then a success need not be recorded.
    """

    open_until: float = 0.0
    reason: str = _UNREACHABLE
    is_clear: bool = True
    _failures: dict[str, float] = attrs.field(factory=dict)
    _forbidden: dict[tuple[str, str | None], tuple[float, str]] = attrs.field(factory=dict)
    _openings: int = 0
    _opened_at: float = 0.0
    _in_doubt_since: float | None = None

    @property
    def forbidden(self) -> frozenset[str]:
        """The keys that were forbidden within the last 10 s, with no success since."""
        return frozenset(key_id for key_id, _ in self._forbidden)

    def record_failure(self, key_id: str, now: float) -> None:
        """Note that a request through ``key_id`` did not reach the provider."""
        self.is_clear = False
        self._failures = {key: at for key, at in self._failures.items() if now - _SPAN < at <= now}
        self._failures[key_id] = now
        if len(self._failures) >= _KEYS and now >= self.open_until:
            self._open(now, _UNREACHABLE)
            self._failures.clear()

    def record_forbidden(
        self, key_id: str, project: str, now: float, words: str, model: str | None = None
    ) -> bool:
        """Note that a key is called wrong or forbidden; return whether the provider is to blame for it.

        Args:
            key_id: The key.
            project: Its project.
            now: Seconds since the epoch.
            words: What the provider says.
            model: The model, if that was forbidden to the key and not everything, and if there are others:
                a model that is forbidden to all keys says nothing about the provider.
        """
        self.is_clear = False
        self._failures.clear()  # it can be reached
        recent = {
            what: entry for what, entry in self._forbidden.items() if now - FORBIDDEN_WITHIN < entry[0] <= now
        }
        self._forbidden = {**recent, (key_id, model): (now, project)}
        projects = {project for _, project in self._forbidden.values()}
        models = {model for _, model in self._forbidden}
        is_one_model = len(models) == 1 and None not in models
        if len(self.forbidden) < _KEYS or len(projects) < _PROJECTS or is_one_model:
            return False
        if self._in_doubt_since is None or now < self._in_doubt_since:
            self._in_doubt_since = now
        if now - self._in_doubt_since > _IN_DOUBT:
            return False
        if now >= self.open_until:
            self._open(now, f"the provider refuses several keys alike: {words}")
        return True

    def heed(self, now: float) -> None:
        """Note what time it is: a clock that was set back must not keep the breaker open for longer."""
        if now < self._opened_at:
            self.open_until = min(self.open_until, now)

    def record_success(self) -> None:
        """Note that the provider answered, if only with an error of its own."""
        self._failures.clear()
        self._forbidden.clear()
        self._openings = 0
        self._in_doubt_since = None
        self.open_until = 0.0
        self.is_clear = True

    def _open(self, now: float, reason: str) -> None:
        self.reason = reason
        self.open_until = now + min(_FIRST_OPEN * 2**self._openings, _LONGEST_OPEN)
        self._opened_at = now
        self._openings += 1
