"""Stores: where the state of quotas is kept."""

from llm_router.stores.base import (
    Decision,
    DeploymentSnapshot,
    QuotaSnapshot,
    RateLimitStore,
    Refusal,
    Sharded,
)
from llm_router.stores.memory import MemoryStore

__all__ = [
    "Decision",
    "DeploymentSnapshot",
    "MemoryStore",
    "QuotaSnapshot",
    "RateLimitStore",
    "Refusal",
    "Sharded",
]
