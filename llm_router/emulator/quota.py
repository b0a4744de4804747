"""The quotas of every project of the emulated provider, and the record that a test asserts on."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import attrs

from llm_router.domain.quota import MINUTE
from llm_router.emulator.bucket import Bucket, Counts, QuotaSpec, Span, Violation, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Arrival", "QuotaKey", "QuotaLedger"]

QuotaKey = str | tuple[str, str]
"""Whose quota: a model, or one (project, model)."""


@attrs.frozen
class Arrival:
    """One request as the provider saw it.

    Attributes:
        at: Seconds since the Unix epoch, on the emulator's clock.
        project: Whose request.
        model: For which model.
        tokens: Its input tokens.
        accepted: False when it was refused with a 429.
    """

    at: float
    project: str
    model: str
    tokens: int
    accepted: bool


class QuotaLedger:
    """The quotas of every (project, model), and the record of what arrived. May be read from any thread.

    Args:
        quotas: What is allowed, by model or by (project, model); the latter wins.
        default: What is allowed for a model that is not in ``quotas``.
        window: How the minute is counted.
        log_size: How many arrivals the log holds; older ones are forgotten.
    """

    def __init__(
        self,
        quotas: Mapping[str, QuotaSpec] | Mapping[QuotaKey, QuotaSpec] | None = None,
        default: QuotaSpec | None = None,
        *,
        window: Window = "sliding",
        log_size: int = 100_000,
    ) -> None:
        if window not in ("sliding", "calendar"):
            raise ValueError(f"window must be 'sliding' or 'calendar', not {window!r}")
        self._specs: dict[QuotaKey, QuotaSpec] = dict((quotas or {}).items())
        self._default = default or QuotaSpec()
        self._window = window
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._log: deque[Arrival] = deque(maxlen=log_size)
        self._forgot = False

    def set_quota(self, key: QuotaKey, spec: QuotaSpec) -> None:
        """Allow ``spec`` from now on; what was counted stays counted."""
        with self._lock:
            self._specs[key] = spec

    def admit(self, project: str, model: str, tokens: int, now: float) -> tuple[Violation, ...]:
        """Count a request, or return the quotas that refuse it; a refused request counts nowhere."""
        with self._lock:
            bucket = self._bucket(project, model)
            now = bucket.move_to(now)
            violations = bucket.violations(self._spec(project, model), now, tokens)
            if violations:
                bucket.refused += 1
            else:
                bucket.take(now, tokens)
            self._note(Arrival(now, project, model, tokens, accepted=not violations))
        return violations

    def refuse(self, project: str, model: str, tokens: int, now: float) -> None:
        """Record a request that is refused whatever its quota says."""
        with self._lock:
            self._bucket(project, model).refused += 1
            self._note(Arrival(now, project, model, tokens, accepted=False))

    def counts(self) -> dict[tuple[str, str], Counts]:
        """Return the counts by (project, model)."""
        with self._lock:
            return {key: bucket.counts() for key, bucket in self._buckets.items()}

    def arrivals(self) -> tuple[Arrival, ...]:
        """Return the log, oldest first."""
        with self._lock:
            return tuple(self._log)

    def peak(self, window: float) -> dict[tuple[str, str], int]:
        """Return, by (project, model), the most requests accepted in any span of ``window`` seconds.

        A span includes its first moment and not its last.

        Raises:
            ValueError: ``window`` is not 60 s, and the log has forgotten arrivals that might matter.
        """
        if window == MINUTE:
            return {key: counts.peak_requests for key, counts in self.counts().items()}
        if self._forgot:
            raise ValueError(f"the log is too short to tell the peak of {window!r} s: raise log_size")
        return _peaks(self.arrivals(), window)

    def clear(self) -> None:
        """Forget every count and every arrival; the limits stay."""
        with self._lock:
            self._buckets.clear()
            self._log.clear()
            self._forgot = False

    def _spec(self, project: str, model: str) -> QuotaSpec:
        specs = self._specs
        return specs.get((project, model)) or specs.get(model) or self._default

    def _bucket(self, project: str, model: str) -> Bucket:
        bucket = self._buckets.get((project, model))
        if bucket is None:
            bucket = self._buckets[project, model] = Bucket(self._window)
        return bucket

    def _note(self, arrival: Arrival) -> None:
        self._forgot = self._forgot or len(self._log) == self._log.maxlen
        self._log.append(arrival)


def _peaks(arrivals: tuple[Arrival, ...], window: float) -> dict[tuple[str, str], int]:
    spans: dict[tuple[str, str], Span] = {}
    peaks: dict[tuple[str, str], int] = {}
    for arrival in arrivals:
        if not arrival.accepted:
            continue
        key = arrival.project, arrival.model
        span = spans.setdefault(key, Span(window))
        span.move_to(arrival.at)
        span.add(arrival.at, arrival.tokens)
        peaks[key] = max(peaks.get(key, 0), len(span))
    return peaks
