"""Cooldowns: what is put aside, until when, and why."""

from __future__ import annotations

import math

import attrs

from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Metric

__all__ = ["LEARNT_FOR", "Cooldown", "LearntLimit"]

LEARNT_FOR = 24 * 3600.0
"""Seconds for which a limit learnt from a refusal holds."""


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
    """A scope put aside until a moment.

    Attributes:
        scope: What is put aside.
        until: Seconds since the Unix epoch; ``math.inf`` for a quarantine, which lasts until it is lifted.
        reason: Why, in words that a status can show.
        learnt: Limits to apply to the scope from now on (for the scope of a (project, model) only).
    """

    scope: Scope
    until: float
    reason: str
    learnt: tuple[LearntLimit, ...] = ()

    @property
    def is_quarantine(self) -> bool:
        """Whether waiting does not end it."""
        return self.until == math.inf

    @classmethod
    def lift(cls, scope: Scope) -> Cooldown:
        """Make the value that ends the cooldown or quarantine of ``scope``."""
        return cls(scope, -math.inf, "lifted")
