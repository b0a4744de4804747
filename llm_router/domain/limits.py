"""Limits that were learnt: how much a quota admits according to the provider or to what it refused."""

from __future__ import annotations

import math
from enum import StrEnum

import attrs

from llm_router.domain.kinds import Metric

__all__ = ["LEARNT_FOR", "LearntLimit", "LimitRecord", "LimitSource"]

LEARNT_FOR = 14 * 86_400.0
"""Seconds for which a learnt limit is remembered unless it is learnt again."""


class LimitSource(StrEnum):
    """How a limit is known."""

    CONFIGURED = "configured"
    """By the configuration, or by the built-in table of models."""
    STATED = "stated"
    """By the provider, which named the number in a refusal."""
    INFERRED = "inferred"
    """From refusals without a number: by what was admitted before them."""
    UNKNOWN = "unknown"
    """Not at all: nothing was refused so far, and more is tried step by step."""


@attrs.frozen
class LearntLimit:
    """A limit to learn, in place of the one learnt before for the same metric.

    It may say how it rises by itself: ``raise_after`` seconds from now, ``raised`` applies in its place, for
    all who share the store. So one request more is tried without another change of state.

    Attributes:
        metric: What it limits.
        limit: Requests or tokens per window; None to forget what was learnt before.
        source: How it is known.
        raised: The limit after ``raise_after``; None for the same.
        raise_after: Seconds; ``math.inf`` for never.
        replaces: Learn it only in place of the limit that was learnt at this time (:class:`LimitRecord`), 0
            for none, so that of several who draw the same conclusion one is obeyed; None for any.
    """

    metric: Metric
    limit: int | None
    source: LimitSource = LimitSource.STATED
    raised: int | None = None
    raise_after: float = math.inf
    replaces: float | None = None


@attrs.frozen
class LimitRecord:
    """What a store knows of a learnt limit.

    Attributes:
        limit: Requests or tokens per window, until ``raise_at``.
        source: How it is known.
        learnt_at: When it was learnt, in seconds since the Unix epoch, by the clock of the store, which with
            Redis may differ from that of the caller. No other limit of the same metric and scope was learnt
            at the same time, so it says which one ``replaces`` means.
        raised: The limit from ``raise_at`` on.
        raise_at: In seconds since the Unix epoch; ``math.inf`` for never.
    """

    limit: int
    source: LimitSource
    learnt_at: float
    raised: int
    raise_at: float

    def in_force(self, now: float) -> int:
        """Return the limit in force at ``now``, in seconds since the Unix epoch."""
        return self.raised if now >= self.raise_at else self.limit
