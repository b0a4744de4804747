"""Cooldowns and quarantines: which scope is avoided, until when, and why."""

from __future__ import annotations

import math

import attrs

from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Metric

__all__ = ["LEARNT_FOR", "Cooldown", "LearntLimit"]

LEARNT_FOR = 24 * 3600.0
"""Seconds for which a limit learnt from a refusal applies."""


@attrs.frozen
class LearntLimit:
    """A limit that the provider stated in a refusal.

    Attributes:
        metric: What it limits.
        limit: Requests or tokens per window.
    """

    metric: Metric
    limit: int


@attrs.frozen
class Cooldown:
    """A scope that no request is sent through until a given time.

    Attributes:
        scope: What cools down or is quarantined.
        until: Seconds since the Unix epoch; ``math.inf`` for a quarantine, which lasts until it is lifted.
        reason: Why, in words that a status can show.
        learnt: Limits to apply to the scope from now on (only for the scope of a (project, model)).
    """

    scope: Scope
    until: float
    reason: str
    learnt: tuple[LearntLimit, ...] = ()

    @property
    def is_quarantine(self) -> bool:
        """Whether it lasts until it is lifted."""
        return self.until == math.inf

    @classmethod
    def lift(cls, scope: Scope) -> Cooldown:
        """Return the value that ends the cooldown or quarantine of ``scope``."""
        return cls(scope, -math.inf, "lifted")
