"""The strategy that spreads requests by weight."""

from __future__ import annotations

import random
from collections.abc import Sequence

from llm_router.strategies.base import Candidate

__all__ = ["Weighted"]


class Weighted:
    """Nearest workload, then lower priority number, then a random draw in proportion to the weights.

    A deployment with weight 0 comes last among its equals.

    Args:
        seed: Makes the draws repeatable.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311 - spreading load is not cryptography

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates in an order drawn by their weights."""
        return sorted(candidates, key=self._rank)

    def _rank(self, candidate: Candidate) -> tuple[int, int, float]:
        # Sorting by exponential variates of rate w draws without replacement in proportion to w
        # (Efraimidis and Spirakis, 2006).
        weight = candidate.deployment.weight
        draw = self._random.expovariate(weight) if weight > 0 else float("inf")
        return candidate.distance, candidate.deployment.priority, draw

    def __repr__(self) -> str:
        return "Weighted()"
