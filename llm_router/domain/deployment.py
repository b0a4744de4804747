"""Keys and deployments: what a request can be sent through."""

from __future__ import annotations

from typing import NewType
from urllib.parse import quote

import attrs

from llm_router.domain.quota import Quota
from llm_router.domain.secret import Secret

__all__ = ["Deployment", "Key", "Scope", "key_scope", "model_scope", "provider_scope"]

Scope = NewType("Scope", str)
"""The name of what shares a fate in a store: a (project, model), a key, a provider.

Its parts are percent-encoded, so that no character of an id can make two scopes one.
"""


def _scope(kind: str, *parts: str) -> Scope:
    return Scope(":".join((kind, *(quote(part, safe="") for part in parts))))


def model_scope(provider: str, project: str, model: str) -> Scope:
    """Name a (project, model): what a quota belongs to and what a 429 is about."""
    return _scope("model", provider, project, model)


def key_scope(provider: str, key_id: str) -> Scope:
    """Name a key: what a dead credential takes out."""
    return _scope("key", provider, key_id)


def provider_scope(provider: str) -> Scope:
    """Name a provider: what an outage takes out."""
    return _scope("provider", provider)


@attrs.frozen
class Key:
    """A credential.

    Attributes:
        key_id: Its name in configuration, logs and statuses.
        secret: The credential itself; masked everywhere.
        provider: Name of the provider adapter that understands it.
        project: Whom the provider bills and limits; keys of one project share their quotas.
    """

    key_id: str
    secret: Secret = attrs.field(eq=False)
    provider: str = "gemini"
    project: str = attrs.field(default="")

    def __attrs_post_init__(self) -> None:
        if not self.project:
            object.__setattr__(self, "project", self.key_id)


@attrs.frozen(eq=False)
class Deployment:
    """One key × one model: the smallest thing that a request can be sent through.

    Attributes:
        key: The credential.
        model: The provider's name of the model.
        workload: The workload that it is meant for.
        priority: Lower is tried first; 0 is a number like any other.
        quotas: The limits of its (project, model); a metric without a quota is unlimited.
        weight: Its share of the traffic under a weighted strategy.
    """

    key: Key
    model: str
    workload: str = "medium"
    priority: int = 1
    quotas: tuple[Quota, ...] = ()
    weight: float = 1.0
    id: str = attrs.field(init=False)
    """``key_id/model``, unique within a router."""
    model_scope: Scope = attrs.field(init=False, repr=False)
    key_scope: Scope = attrs.field(init=False, repr=False)
    provider_scope: Scope = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        key = self.key
        object.__setattr__(self, "id", f"{key.key_id}/{self.model}")
        object.__setattr__(self, "model_scope", model_scope(key.provider, key.project, self.model))
        object.__setattr__(self, "key_scope", key_scope(key.provider, key.key_id))
        object.__setattr__(self, "provider_scope", provider_scope(key.provider))

    @property
    def scopes(self) -> tuple[Scope, Scope, Scope]:
        """Every scope whose cooldown puts this deployment aside."""
        return self.model_scope, self.key_scope, self.provider_scope
