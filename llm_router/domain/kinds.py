"""The kinds of failures, their scopes, and the kinds of quotas: enumerations that everything may import."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["FailureKind", "FaultScope", "Metric"]


class FailureKind(StrEnum):
    """The cause of a :class:`~llm_router.errors.ProviderError`, and so what helps."""

    REQUEST = "request"
    """The request is wrong: no other key and no waiting helps."""
    KEY = "key"
    """The key, or its project, is dead."""
    MODEL = "model"
    """The model does not exist for this project."""
    QUOTA = "quota"
    """A quota of this (project, model) is spent."""
    SERVER = "server"
    """The model is overloaded or broken."""
    NETWORK = "network"
    """The path to the provider is broken, or what came back is not an answer."""
    TIMEOUT = "timeout"
    """No answer came in time."""


class FaultScope(StrEnum):
    """What a :class:`~llm_router.errors.ProviderError` blames, and so what the router leaves alone."""

    REQUEST = "request"
    """The request itself."""
    FEATURE = "feature"
    """A feature of the request, such as a search tool, on that project."""
    DEPLOYMENT = "deployment"
    """The model for that project."""
    PROJECT = "project"
    """The project, whatever the model."""
    KEY = "key"
    """The key."""
    MODEL = "model"
    """The model, whatever the key."""
    PATH = "path"
    """The path from this machine to the provider."""
    PROVIDER = "provider"
    """The provider as a whole."""


class Metric(StrEnum):
    """What a quota counts."""

    RPM = "rpm"
    """Requests per minute."""
    TPM = "tpm"
    """Input tokens per minute."""
    RPD = "rpd"
    """Requests per day."""
    TPD = "tpd"
    """Input tokens per day."""

    @property
    def counts_tokens(self) -> bool:
        """Whether it counts tokens rather than requests."""
        return self in (Metric.TPM, Metric.TPD)

    @property
    def is_daily(self) -> bool:
        """Whether the quota comes back once a day rather than minute by minute."""
        return self in (Metric.RPD, Metric.TPD)
