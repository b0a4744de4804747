"""Providers: the services that requests are sent to."""

from llm_router.providers.base import FailureKind, Provider, Reply

__all__ = ["FailureKind", "Provider", "Reply"]
