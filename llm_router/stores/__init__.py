"""Stores: where the state of quotas is kept."""

from llm_router.stores.base import (
    Decision,
    DeploymentSnapshot,
    ExternalStore,
    QuotaSnapshot,
    Ranking,
    RateLimitStore,
    Refusal,
    Sharded,
    Standing,
    Taking,
)
from llm_router.stores.memory import MemoryStore

__all__ = [
    "Decision",
    "DeploymentSnapshot",
    "ExternalStore",
    "MemoryStore",
    "QuotaSnapshot",
    "Ranking",
    "RateLimitStore",
    "Refusal",
    "Sharded",
    "Standing",
    "Taking",
]
