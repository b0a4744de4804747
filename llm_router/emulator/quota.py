"""The quotas of every project, and the log of the requests that arrived."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import attrs

from llm_router.domain.quota import MINUTE
from llm_router.emulator.bucket import Bucket, Counts, QuotaSpec, Span, Violation, Window

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Arrival", "EmulatedQuotas", "QuotaKey"]

QuotaKey = str | tuple[str, str]
"""What a quota applies to: a model, or one (project, model)."""


@attrs.frozen
class Arrival:
    """One request as the provider saw it.

    Attributes:
        at: Seconds since the Unix epoch, on the emulator's clock.
        project: The project of its key.
        model: The model it was sent to.
        tokens: Its input tokens.
        accepted: False if it was refused with a 429.
    """

    at: float
    project: str
    model: str
    tokens: int
    accepted: bool


class EmulatedQuotas:
    """The quotas of every (project, model), and the log of arrivals. May be used from any thread.

    Args:
        quotas: The quotas, by model or by (project, model); the latter wins.
        default: The quotas of models not in ``quotas``.
        window: How a minute is counted.
        log_size: The number of arrivals that the log keeps.
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
        self._dropped = False

    def set_quota(self, key: QuotaKey, spec: QuotaSpec) -> None:
        """Set quotas; what has been counted stays counted."""
        with self._lock:
            self._specs[key] = spec

    def admit(self, project: str, model: str, tokens: int, now: float) -> tuple[Violation, ...]:
        """Count a request, or return the quotas that refuse it; a refused request uses none."""
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
        """Log a request that a fault refuses."""
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
            ValueError: ``window`` is not 60 s, and the log no longer has all arrivals.
        """
        if window == MINUTE:
            return {key: counts.peak_requests for key, counts in self.counts().items()}
        if self._dropped:
            raise ValueError(f"the log is too short for the peak of {window!r} s: raise log_size")
        return _peaks(self.arrivals(), window)

    def clear(self) -> None:
        """Clear all counts and the log; the quotas stay."""
        with self._lock:
            self._buckets.clear()
            self._log.clear()
            self._dropped = False

    def _spec(self, project: str, model: str) -> QuotaSpec:
        specs = self._specs
        return specs.get((project, model)) or specs.get(model) or self._default

    def _bucket(self, project: str, model: str) -> Bucket:
        bucket = self._buckets.get((project, model))
        if bucket is None:
            bucket = self._buckets[project, model] = Bucket(self._window)
        return bucket

    def _note(self, arrival: Arrival) -> None:
        self._dropped = self._dropped or len(self._log) == self._log.maxlen
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
