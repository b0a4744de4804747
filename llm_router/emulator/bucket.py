"""Counting the requests of one project to one model, and refusing those over a quota."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import attrs

from llm_router.domain.quota import MINUTE, Metric

__all__ = ["Bucket", "Counts", "QuotaSpec", "Span", "Violation", "Window", "next_midnight"]

_PRECISION = 1e-6
"""Seconds to which a retryDelay is rounded, so that a client that waits exactly that long finds room."""

_PACIFIC = ZoneInfo("America/Los_Angeles")

Window = Literal["sliding", "calendar"]
"""How a minute is counted: any span of 60 s, or from one full minute to the next."""


@attrs.frozen
class QuotaSpec:
    """The quotas of one project on one model; None is unlimited, 0 allows nothing.

    Attributes:
        rpm: Requests per minute.
        tpm: Input tokens per minute.
        rpd: Requests per day, Pacific time.
        tpd: Input tokens per day, Pacific time.
    """

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None
    tpd: int | None = None


@attrs.frozen
class Violation:
    """A quota that refused a request.

    Attributes:
        metric: Which quota.
        limit: Its limit.
        retry_in: Seconds until the request would fit; None for a quota per day or a limit of 0.
    """

    metric: Metric
    limit: int
    retry_in: float | None


@attrs.frozen
class Counts:
    """What has arrived since the start.

    Attributes:
        accepted: Requests counted against the quota.
        refused: Requests refused with a 429.
        tokens: Input tokens of the accepted requests.
        peak_requests: The largest number of accepted requests in any 60 s span.
        peak_tokens: The largest number of their input tokens in any 60 s span.
    """

    accepted: int = 0
    refused: int = 0
    tokens: int = 0
    peak_requests: int = 0
    peak_tokens: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            accepted=self.accepted + other.accepted,
            refused=self.refused + other.refused,
            tokens=self.tokens + other.tokens,
            peak_requests=max(self.peak_requests, other.peak_requests),
            peak_tokens=max(self.peak_tokens, other.peak_tokens),
        )


def next_midnight(now: float) -> float:
    """Return the first midnight in Los Angeles after ``now``, both in seconds since the Unix epoch."""
    today = datetime.fromtimestamp(now, _PACIFIC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today + timedelta(days=1)).timestamp()


class Span:
    """The accepted requests of the last ``length`` seconds, exactly, with one entry per request."""

    __slots__ = ("_entries", "_length", "tokens")

    def __init__(self, length: float) -> None:
        self._length = length
        self._entries: deque[tuple[float, int]] = deque()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def move_to(self, now: float) -> None:
        """Drop requests that are older than the span at ``now``."""
        entries = self._entries
        while entries and now - entries[0][0] >= self._length - _PRECISION:
            self.tokens -= entries.popleft()[1]

    def add(self, now: float, tokens: int) -> None:
        """Count a request of ``tokens`` at ``now``."""
        self._entries.append((now, tokens))
        self.tokens += tokens

    def room_in(self, now: float, *, requests: int, tokens: int) -> float:
        """Return the seconds until at most ``requests`` and ``tokens`` remain in the span."""
        left_requests, left_tokens = len(self._entries), self.tokens
        for at, amount in self._entries:
            left_requests, left_tokens = left_requests - 1, left_tokens - amount
            if left_requests <= requests and left_tokens <= tokens:
                return at + self._length - now
        return self._length


class Bucket:
    """The counters of one project on one model."""

    __slots__ = (
        "accepted",
        "day_ends",
        "day_requests",
        "day_tokens",
        "last",
        "minute",
        "minute_requests",
        "minute_tokens",
        "peak_requests",
        "peak_tokens",
        "refused",
        "span",
        "tokens",
        "window",
    )

    def __init__(self, window: Window) -> None:
        self.window = window
        self.span = Span(MINUTE)
        self.last = self.day_ends = float("-inf")
        self.minute = -1
        self.minute_requests = self.minute_tokens = self.day_requests = self.day_tokens = 0
        self.accepted = self.refused = self.tokens = self.peak_requests = self.peak_tokens = 0

    def move_to(self, moment: float) -> float:
        """Drop what is too old at ``moment``; return it, or the latest moment so far if that is later."""
        # The system clock may be set back; what has been counted stays counted.
        now = self.last = max(moment, self.last)
        self.span.move_to(now)
        minute = int((now + _PRECISION) // MINUTE)
        if minute != self.minute:
            self.minute, self.minute_requests, self.minute_tokens = minute, 0, 0
        if now >= self.day_ends:
            self.day_ends, self.day_requests, self.day_tokens = next_midnight(now), 0, 0
        return now

    def violations(self, spec: QuotaSpec, now: float, tokens: int) -> tuple[Violation, ...]:
        """Return the quotas of ``spec`` that have no room for one request of ``tokens``."""
        sliding = self.window == "sliding"
        minute_requests = len(self.span) if sliding else self.minute_requests
        minute_tokens = self.span.tokens if sliding else self.minute_tokens
        wanted = (
            (Metric.RPM, spec.rpm, minute_requests + 1),
            (Metric.TPM, spec.tpm, minute_tokens + tokens),
            (Metric.RPD, spec.rpd, self.day_requests + 1),
            (Metric.TPD, spec.tpd, self.day_tokens + tokens),
        )
        return tuple(
            Violation(metric, limit, self._retry_in(metric, limit, now, tokens))
            for metric, limit, total in wanted
            if limit is not None and total > limit
        )

    def _retry_in(self, metric: Metric, limit: int, now: float, tokens: int) -> float | None:
        if metric.is_daily or limit == 0:
            return None
        if self.window == "calendar":
            return MINUTE - now % MINUTE
        if metric is Metric.RPM:
            return self.span.room_in(now, requests=limit - 1, tokens=self.span.tokens)
        return self.span.room_in(now, requests=len(self.span), tokens=limit - tokens)

    def take(self, now: float, tokens: int) -> None:
        """Count a request of ``tokens``."""
        self.span.add(now, tokens)
        self.minute_requests += 1
        self.minute_tokens += tokens
        self.day_requests += 1
        self.day_tokens += tokens
        self.accepted += 1
        self.tokens += tokens
        self.peak_requests = max(self.peak_requests, len(self.span))
        self.peak_tokens = max(self.peak_tokens, self.span.tokens)

    def counts(self) -> Counts:
        """Return the counts since the start."""
        return Counts(self.accepted, self.refused, self.tokens, self.peak_requests, self.peak_tokens)
