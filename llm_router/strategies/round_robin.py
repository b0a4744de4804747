"""The strategy that gives every deployment its turn."""

from __future__ import annotations

from collections.abc import Sequence

from llm_router.strategies.base import Candidate

__all__ = ["RoundRobin"]


class RoundRobin:
    """Nearest workload, then lower priority number, then each deployment in turn.

    The candidates arrive in this order: the local index moves on by one deployment with every call.
    """

    def order(self, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates as they are."""
        return candidates

    def __repr__(self) -> str:
        return "RoundRobin()"
