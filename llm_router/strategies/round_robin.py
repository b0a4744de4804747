"""Give every deployment its turn."""

from __future__ import annotations

from collections.abc import Sequence

from llm_router.strategies.base import Candidate

__all__ = ["RoundRobin"]


class RoundRobin:
    """Nearest workload, then lower priority number, then whoever's turn it is.

    The candidates already come so: the local index moves on by one deployment with every call.
    """

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates as they came."""
        return candidates

    def __repr__(self) -> str:
        return "RoundRobin()"
