"""Quotas: how much a provider allows, and how it comes back."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import attrs

from llm_router.domain.kinds import Metric
from llm_router.domain.numbers import MAX_LIMIT, real, shown, whole
from llm_router.errors import ConfigError

__all__ = [
    "GUARD",
    "MAX_GUARD",
    "MAX_LIMIT",
    "MAX_WINDOW",
    "MINUTE",
    "PROVIDER_TIMEZONE",
    "TOKEN_METRICS",
    "Demand",
    "Metric",
    "Quota",
    "Refill",
]

_E = TypeVar("_E", bound=StrEnum)

MINUTE = 60.0
"""The window of a per-minute quota, in seconds."""

GUARD = 0.3
"""Seconds added to a window: the longest delay expected before the provider counts quota that was taken."""

MAX_WINDOW = 1e9
"""The longest window, in seconds: every store keeps times exactly up to it."""

MAX_GUARD = 86_400.0
"""The longest guard, in seconds."""

PROVIDER_TIMEZONE = "America/Los_Angeles"
"""Where Google's day ends."""

TOKEN_METRICS = frozenset(metric.value for metric in Metric if metric.counts_tokens)
"""The metrics that count tokens, as a refusal names them."""


class Refill(StrEnum):
    """How a spent quota comes back."""

    ROLLING = "rolling"
    """Each token comes back one window after it was taken: no window ever sees more than the limit."""
    STEADY = "steady"
    """Tokens return at a constant rate to a small bucket, for providers that smooth their limits."""
    DAILY = "daily"
    """All tokens come back at midnight in the provider's time zone."""


def _metric(given: Metric) -> Metric:
    return _known(Metric, given, "a quota counts", "Metric.RPM")


def _refill(given: Refill) -> Refill:
    return _known(Refill, given, "a quota's refill must be", "Refill.ROLLING")


def _known(kind: type[_E], given: _E, what: str, example: str) -> _E:
    try:
        return kind(given)
    except ValueError:
        raise ConfigError(f"{what} one of {', '.join(kind)}, such as {example}, not {shown(given)}") from None


@attrs.frozen
class Quota:
    """One limit of one (project, model).

    Attributes:
        metric: What is counted.
        limit: Requests or tokens per window; 0 admits nothing.
        refill: How it comes back; by default what the metric says, at midnight (rpd, tpd) or rolling.
        window: Seconds that the provider counts over (rolling and steady only; a day is no window).
        guard: Seconds added to the window; see :data:`GUARD`.
        burst: Size of a steady bucket, in requests or tokens: the most it gives at once, and so the largest
            request it ever admits. None means 5 % of a limit in requests, half of one in tokens; at least 1.
            Steady only.
        timezone: The time zone of a daily quota's midnight, as an IANA name. Daily only.
        adaptive: Whether the limit is only where to start: what is learnt takes its place, lower or higher.
            Otherwise what is learnt never raises it.

    Raises:
        ConfigError: A value cannot be meant, or means nothing under this refill.
    """

    metric: Metric = attrs.field(converter=_metric)
    limit: int
    refill: Refill = attrs.field(converter=_refill)
    window: float = MINUTE
    guard: float = GUARD
    burst: int | None = None
    timezone: str = PROVIDER_TIMEZONE
    adaptive: bool = False

    @refill.default
    def _default_refill(self) -> Refill:
        return Refill.DAILY if self.metric.is_daily else Refill.ROLLING

    def __attrs_post_init__(self) -> None:
        name = self.metric.value
        limit, burst = whole(self.limit), whole(self.burst)
        if limit is None or not 0 <= limit <= MAX_LIMIT:
            raise ConfigError(
                f"{name} must be a whole number, 0 or more (at most {MAX_LIMIT}), not {shown(self.limit)}"
            )
        if not 0 < real(self.window) <= MAX_WINDOW or not 0 <= real(self.guard) <= MAX_GUARD:
            raise ConfigError(
                f"{name}: window must be above 0 s (at most {MAX_WINDOW:.0f}) and guard 0 s or more "
                f"(at most {MAX_GUARD:.0f}), not {shown(self.window)} and {shown(self.guard)}"
            )
        if self.burst is not None and (burst is None or not 1 <= burst <= max(limit, 1)):
            raise ConfigError(
                f"{name}: burst must be a whole number between 1 and the limit, not {shown(self.burst)}"
            )
        self._refuse_what_means_nothing()
        object.__setattr__(self, "limit", limit)  # as ints, though they may have been given as floats
        object.__setattr__(self, "burst", burst)

    def _refuse_what_means_nothing(self) -> None:
        """Refuse an argument that this refill would ignore; one at its default may have been copied."""
        name, refill = self.metric.value, self.refill.value
        if self.refill is Refill.DAILY and self.window != MINUTE:
            raise ConfigError(
                f"{name}: a daily quota comes back at midnight, so window={shown(self.window)} means "
                'nothing: add refill="rolling" (or "steady"), or leave the window out'
            )
        if self.refill is not Refill.STEADY and self.burst is not None:
            raise ConfigError(
                f"{name}: a {refill} quota has no bucket, so burst={shown(self.burst)} means nothing: "
                'add refill="steady", or leave the burst out'
            )
        if self.refill is not Refill.DAILY and self.timezone != PROVIDER_TIMEZONE:
            raise ConfigError(
                f"{name}: a {refill} quota knows no midnight, so timezone={shown(self.timezone)} means "
                'nothing: add refill="daily", or leave the timezone out'
            )

    @property
    def capacity(self) -> int:
        """The largest amount a steady bucket gives at once, in requests or tokens."""
        default = self.limit // (2 if self.metric.counts_tokens else 20)
        return min(self.limit, max(1, default) if self.burst is None else self.burst)


@attrs.frozen
class Demand:
    """What one request needs, or what it really used.

    Attributes:
        requests: Requests sent to the provider.
        tokens: Input tokens.
    """

    requests: int = 1
    tokens: int = 0

    def amount(self, metric: Metric) -> int:
        """Return how much of a quota of ``metric`` this demand takes."""
        return self.tokens if metric.counts_tokens else self.requests
