"""What the controller of learnt limits is told of refusals, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.quota import GUARD, MAX_LIMIT, MINUTE, Metric
from llm_router.stores.base import QuotaSnapshot

__all__ = [
    "LATEST",
    "LIKELY",
    "WINDOW",
    "Circumstances",
    "Growth",
    "Inference",
    "begin_to_count",
    "is_in_part",
]

WINDOW = MINUTE + GUARD
"""Seconds after which what was admitted no longer counts."""

LATEST = 2
"""Refusals before one that names nothing whose counts say whether it is for tokens."""

LIKELY = 0.5
"""The share of a limit below which it is not what was spent."""


@attrs.frozen
class Inference:
    """What a refusal says.

    Attributes:
        learnt: The limits to learn.
        is_explained: Whether the store's own count refuses now, for as long as needed: no cooldown must.
        is_day_confirmed: Whether the day's quota is known to be spent: trying once more would not help.
        pause: Seconds after which, or twice that, to try again if the provider says nothing and the count
            does not explain the refusal; 0 if nothing was admitted for a whole window.
        counted_in: Seconds after which to try again at the latest if the provider says nothing: then a whole
            window has been counted of what was not counted before; infinity if all was.
        is_starved: Whether nothing of what was refused was admitted for a whole window: another user has all
            of the quota.
    """

    learnt: tuple[LearntLimit, ...] = ()
    is_explained: bool = False
    is_day_confirmed: bool = False
    pause: float = 0.0
    counted_in: float = math.inf
    is_starved: bool = False


@attrs.frozen
class Circumstances:
    """When a refused request was sent, and what had happened before.

    Attributes:
        now: Seconds since the epoch.
        began: When the request was sent, likewise.
        strikes: How often in a row it was refused before, each time after it had been left alone.
        since: When the first of those strikes was, in seconds since the epoch.
        repeated: Whether it was on its way before another refusal was acted upon: both are one event.
        finding: Whether that was the event in which the limit was found.
        doubted: Whether an earlier event that could not be explained was put down to chance.
        tokens: The input tokens that were reserved for it.
        before: The quotas when the first of the strikes came, before anything was learnt from it; empty if
            that is not known.
        latest: The quotas at each of the last :data:`LATEST` refusals before this one that named nothing,
            since all of them were counted as a whole.
        first_tokens: The limit of tokens that was learnt when refusals that name nothing were last taken for
            tokens; 0 if they were not, or long ago.
        window: Seconds after which what was admitted of the quota that is looked at no longer counts.
    """

    now: float
    began: float
    strikes: int = 0
    since: float = math.inf
    repeated: bool = False
    finding: bool = False
    doubted: bool = False
    tokens: int = 0
    before: Sequence[QuotaSnapshot] = ()
    latest: Sequence[Sequence[QuotaSnapshot]] = ()
    first_tokens: int = 0
    window: float = WINDOW


@attrs.frozen
class Growth:
    """What an answer says.

    Attributes:
        learnt: The limits to learn.
        due: When the next answer says something new, in seconds since the epoch.
    """

    learnt: tuple[LearntLimit, ...]
    due: float


def begin_to_count(metric: Metric) -> LearntLimit:
    """Return the limit by which the store counts from now on what nobody has set a limit for."""
    return LearntLimit(metric, MAX_LIMIT, LimitSource.UNKNOWN, replaces=0.0)


def is_in_part(quota: QuotaSnapshot, now: float, window: float = WINDOW) -> bool:
    """Return whether a quota that nobody has set a limit for has not been counted for a whole window yet."""
    return quota.limit >= MAX_LIMIT and quota.learnt is not None and now - quota.learnt.learnt_at < window
