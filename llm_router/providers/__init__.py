"""How a provider is called."""

from llm_router.providers.base import FailureKind, Provider, Reply

__all__ = ["FailureKind", "Provider", "Reply"]
