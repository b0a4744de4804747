"""Prefer the deployment with the largest share of its quota left."""

from __future__ import annotations

from collections.abc import Sequence

from llm_router.strategies.base import Candidate

__all__ = ["LeastLoaded"]


def _rank(candidate: Candidate) -> tuple[int, int, float]:
    return candidate.distance, candidate.deployment.priority, candidate.failures - candidate.headroom


class LeastLoaded:
    """The default: nearest workload, then lower priority number, then the larger remaining share.

    A deployment that failed lately ranks behind its healthy equals.
    """

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates, least loaded first."""
        return sorted(candidates, key=_rank) if len(candidates) > 1 else candidates

    def __repr__(self) -> str:
        return "LeastLoaded()"
