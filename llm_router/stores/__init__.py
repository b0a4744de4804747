"""Stores: where the state of quotas is kept."""

from llm_router.stores.base import (
    Decision,
    DeploymentSnapshot,
    ExternalStore,
    QuotaSnapshot,
    RateLimitStore,
    Refusal,
    Sharded,
    Taking,
)
from llm_router.stores.memory import MemoryStore

__all__ = [
    "Decision",
    "DeploymentSnapshot",
    "ExternalStore",
    "MemoryStore",
    "QuotaSnapshot",
    "RateLimitStore",
    "Refusal",
    "Sharded",
    "Taking",
]
