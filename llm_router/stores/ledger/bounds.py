"""What stores make of odd arguments, so that these harm neither other callers nor what is stored."""

from __future__ import annotations

from llm_router.domain.quota import MAX_LIMIT, Demand

__all__ = ["MAX_TTL", "MAX_TTL_MICROSECONDS", "bounded", "lifetime"]

MAX_TTL = 7 * 86_400.0
"""Seconds that a reservation lasts at most."""

MAX_TTL_MICROSECONDS = 7 * 86_400_000_000
""":data:`MAX_TTL` in microseconds."""


def lifetime(ttl: float) -> int:
    """Return how long a reservation lasts, in microseconds; NaN is taken as the longest time."""
    if 0.0 <= ttl <= MAX_TTL:
        return round(ttl * 1e6)
    return 0 if ttl < 0.0 else MAX_TTL_MICROSECONDS


def bounded(demand: Demand) -> Demand:
    """Return a demand with amounts from 0 to the largest limit; NaN is taken as 0."""
    requests, tokens = demand.requests, demand.tokens
    if 0 <= requests <= MAX_LIMIT and 0 <= tokens <= MAX_LIMIT:
        return demand
    return Demand(max(0, min(requests, MAX_LIMIT)), max(0, min(tokens, MAX_LIMIT)))
