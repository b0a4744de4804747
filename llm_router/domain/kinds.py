"""The kinds and scopes of failures, and the kinds of quotas: enumerations that everything else may import."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["FailureKind", "FaultScope", "Metric"]


class FailureKind(StrEnum):
    """The cause of a :class:`~llm_router.errors.ProviderError`, and so what helps."""

    REQUEST = "request"
    """The request is wrong: no other key and no waiting helps."""
    KEY = "key"
    """The key is refused, or its project."""
    MODEL = "model"
    """The model does not exist for this project, or is denied to it."""
    QUOTA = "quota"
    """A quota is spent: of this (project, model), unless the scope says otherwise."""
    SERVER = "server"
    """The model is overloaded or broken."""
    NETWORK = "network"
    """The path to the provider is broken, or what came back is not an answer."""
    TIMEOUT = "timeout"
    """No answer came in time."""


class FaultScope(StrEnum):
    """What a failure is about, and so what the router leaves alone, and what it tries instead."""

    REQUEST = "request"
    """This request alone: it fails at once, and nothing is left alone."""
    FEATURE = "feature"
    """A feature of the request, on that project: requests with the feature go to other projects, requests
    without it are not affected."""
    DEPLOYMENT = "deployment"
    """The model for that project: every key of the project leaves this model alone."""
    PROJECT = "project"
    """The project, whatever the model: every key of it is left alone."""
    KEY = "key"
    """The key, whatever the model: other keys of its project are not affected."""
    MODEL = "model"
    """The model, whatever the key: the request goes to another model if its fallback allows one."""
    PATH = "path"
    """The path from this machine to the provider: this process backs off, and blames no key and no model."""
    PROVIDER = "provider"
    """The provider as a whole: this process backs off from all of it."""


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
