"""Prefer the deployment with the largest share of its quota left."""

from __future__ import annotations

from collections.abc import Sequence

from llm_router.strategies.base import Candidate

__all__ = ["LeastLoaded"]


def _load(candidate: Candidate) -> float:
    return candidate.failures - candidate.headroom


def _place(candidate: Candidate) -> tuple[int, int]:
    return candidate.distance, candidate.deployment.priority


def _rank(candidate: Candidate) -> tuple[int, int, float]:
    return (*_place(candidate), _load(candidate))


class LeastLoaded:
    """The default: nearest workload, then lower priority number, then the larger remaining share.

    A deployment that failed lately ranks behind its healthy equals.
    """

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates, least loaded first."""
        if not candidates:
            return candidates
        # They come nearest first, then by priority: if the ends agree in these, all do, and the load decides.
        alike = _place(candidates[0]) == _place(candidates[-1])
        return sorted(candidates, key=_load if alike else _rank)

    def __repr__(self) -> str:
        return "LeastLoaded()"
