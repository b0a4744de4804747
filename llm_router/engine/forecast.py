"""When a line will have its next grants at the earliest, by the limits of its deployments."""

from __future__ import annotations

import math
from collections import deque

from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Metric, Quota, Refill
from llm_router.engine.index import FallbackOrder

__all__ = ["Forecast", "forecast_for"]

_MAX_REMEMBERED = 10_000
"""Most grants that are remembered; with more in a window, a forecast counts whole windows only."""

_INEXACT = 1.0
"""Seconds by which the times that are noted may be early."""


class Forecast:
    """The earliest times at which further requests of a line can be granted.

    No window ever holds more requests than the limits allow. So a grant comes no earlier than a window after
    the one that came so many places before it. That is exact for a line that alone uses its deployments, and
    otherwise too early: other users only make a request wait longer. It does not hold where quota comes back
    early; then everything must be forgotten.

    Times are on the monotonic clock.

    Args:
        most: The requests that all deployments of the line together admit in a window; above 0.
        window: Seconds after which a request that was granted comes back.
    """

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._granted: deque[float] = deque(maxlen=min(most, _MAX_REMEMBERED))
        self._doubted_until = -math.inf

    def note(self, at: float) -> None:
        """Note a grant, whose quota was taken at ``at`` or later."""
        granted = self._granted
        if len(granted) == self._most and at < granted[0] + self._window - _INEXACT:
            # More than the limits allow: the store lost its counts, or has none.
            self._doubted_until = at + self._window
        granted.append(at)

    def forget(self) -> None:
        """Forget the grants, since quota came back early."""
        self._granted.clear()

    def earliest(self, ahead: int, now: float, first: float) -> float:
        """Return when a request can be granted at the earliest that goes after ``ahead`` others.

        Args:
            ahead: How many requests are granted before it.
            now: The time.
            first: When the first of them can be granted at the earliest.
        """
        if now < self._doubted_until:
            return now
        windows, place = divmod(ahead, self._most)
        before = len(self._granted) + place - self._most
        returns = self._granted[before] + self._window if before >= 0 else now
        return max(now, first, returns) + windows * self._window


def forecast_for(order: FallbackOrder) -> Forecast | None:
    """Return a forecast for a fallback order; None if the limit of one of its deployments is not certain.

    That is so where requests are not limited per window, or the limit is one that may rise.
    """
    limits: dict[Scope, Quota] = {}
    for group in order.groups:
        for state in group.states:
            quota = _requests(state.deployment.quotas)
            if quota is None:
                return None
            limits[state.deployment.model_scope] = quota
    most = sum(quota.limit for quota in limits.values())
    return Forecast(most, min(quota.window + quota.guard for quota in limits.values())) if most else None


def _requests(quotas: tuple[Quota, ...]) -> Quota | None:
    """Return the quota that is sure to limit the requests of any window."""
    for quota in quotas:
        if quota.metric is Metric.RPM and quota.refill is Refill.ROLLING and not quota.adaptive:
            return quota
    return None
