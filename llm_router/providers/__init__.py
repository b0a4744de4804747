"""Providers: the services that requests are sent to."""

from llm_router.providers.base import FailureKind, FaultScope, Provider, Reply

__all__ = ["FailureKind", "FaultScope", "Provider", "Reply"]
