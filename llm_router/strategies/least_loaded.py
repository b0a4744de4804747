"""The strategy that prefers the deployment with the largest share of its quota left."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from llm_router.strategies.base import Candidate

__all__ = ["LeastLoaded"]

_step = attrgetter("distance", "deployment.priority")
_load = attrgetter("load")
_rank = attrgetter("distance", "deployment.priority", "load")


class LeastLoaded:
    """The default: nearest workload, then lower priority number, then the larger remaining share.

    A deployment that failed recently ranks behind its healthy equals.
    """

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates, least loaded first."""
        if not candidates:
            return candidates
        # They arrive nearest first, then by priority: if the two ends are equal in both, all are, and the
        # load decides.
        alike = _step(candidates[0]) == _step(candidates[-1])
        return sorted(candidates, key=_load if alike else _rank)

    def __repr__(self) -> str:
        return "LeastLoaded()"
