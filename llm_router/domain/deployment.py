"""Keys and deployments: what a request is sent through."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NewType
from urllib.parse import quote

import attrs

from llm_router.domain.kinds import Metric
from llm_router.domain.methods import usual_methods
from llm_router.domain.quota import MAX_LIMIT, Quota
from llm_router.domain.secret import Secret

__all__ = [
    "EVERY_MODEL",
    "OF_PROJECT",
    "SPENDING",
    "Deployment",
    "Key",
    "ProjectDeployment",
    "Scope",
    "key_scope",
    "model_scope",
    "plain_model",
    "project_scope",
    "provider_scope",
]

Scope = NewType("Scope", str)
"""The name under which a store keeps cooldowns and quotas: of a (project, model), key, project or provider.

Its parts are percent-encoded, so that no character in an id can make two scopes equal.
"""

EVERY_MODEL = "*"
"""What stands for the model where all models of a project are meant; no model is called so."""

SPENDING = "* spending"
"""The same where what they spend is meant."""

OF_PROJECT = " of the whole project"
"""Ends the reason of a refusal, after the metric, where all models of the project share the limit."""

_SPENDING_QUOTA = Quota(Metric.RPM, MAX_LIMIT, window=600.0, adaptive=True)
"""What a project spends in ten minutes, counted in requests, of which nothing is known at first."""


def plain_model(name: str) -> str:
    """Return the name of a model without ``models/``, so that each model has one name, and one quota."""
    return name.removeprefix("models/")


def _methods(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


def _scope(kind: str, *parts: str) -> Scope:
    return Scope(":".join((kind, *(quote(part, safe="") for part in parts))))


def model_scope(provider: str, project: str, model: str) -> Scope:
    """Return the scope of a (project, model), which quotas and 429s apply to."""
    return _scope("model", provider, project, model)


def key_scope(provider: str, key_id: str) -> Scope:
    """Return the scope of a key, which a dead credential takes out."""
    return _scope("key", provider, key_id)


def project_scope(provider: str, project: str) -> Scope:
    """Return the scope of a project, which a lapsed bill or a spent budget takes out."""
    return _scope("project", provider, project)


def provider_scope(provider: str) -> Scope:
    """Return the scope of a provider, which an outage takes out."""
    return _scope("provider", provider)


@attrs.frozen
class Key:
    """A credential.

    Attributes:
        key_id: Its name in configuration, logs and statuses.
        secret: The credential itself; masked everywhere.
        provider: The name of the provider adapter that uses it.
        project: What the provider bills and limits; the keys of one project share its quotas. Defaults to
            the key's own name.
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
    """One key × one model: the unit that requests are sent through.

    Attributes:
        key: The credential.
        model: The provider's name of the model; a leading ``models/`` is dropped.
        workload: The workload it is meant for.
        priority: Lower numbers are tried first; 0 is allowed.
        quotas: The limits of its (project, model); a metric without a quota is unlimited.
        weight: Its share of the traffic under a weighted strategy.
        methods: What it can be asked for, of :data:`~llm_router.domain.methods.METHODS`; by default what the
            name of the model says. A fallback never takes a request to a model that cannot do it.
    """

    key: Key
    model: str = attrs.field(converter=plain_model)
    workload: str = "medium"
    priority: int = 1
    quotas: tuple[Quota, ...] = ()
    weight: float = 1.0
    methods: frozenset[str] = attrs.field(
        default=attrs.Factory(lambda made: usual_methods(made.model), takes_self=True), converter=_methods
    )
    id: str = attrs.field(init=False)
    """``key_id/model``, unique within a router."""
    model_scope: Scope = attrs.field(init=False, repr=False)
    key_scope: Scope = attrs.field(init=False, repr=False)
    project_scope: Scope = attrs.field(init=False, repr=False)
    provider_scope: Scope = attrs.field(init=False, repr=False)
    scopes: tuple[Scope, ...] = attrs.field(init=False, repr=False)
    """The scopes whose cooldown or quarantine applies to this deployment, that of the model first."""

    def __attrs_post_init__(self) -> None:
        key = self.key
        object.__setattr__(self, "id", f"{key.key_id}/{self.model}")
        object.__setattr__(self, "model_scope", model_scope(key.provider, key.project, self.model))
        object.__setattr__(self, "key_scope", key_scope(key.provider, key.key_id))
        object.__setattr__(self, "project_scope", project_scope(key.provider, key.project))
        object.__setattr__(self, "provider_scope", provider_scope(key.provider))
        scopes = self.model_scope, self.key_scope, self.project_scope, self.provider_scope
        object.__setattr__(self, "scopes", scopes)

    @property
    def is_spending(self) -> bool:
        """Whether it stands for what a project spends; see :class:`ProjectDeployment`."""
        return self.model == SPENDING

    def limit_name(self, metric: str) -> str:
        """Return the name of a quota among the limits that statuses show."""
        return "spending" if self.is_spending else metric

    def quota_name(self, metric: str) -> str:
        """Return what a refusal for want of a quota of this deployment is called."""
        return self.limit_name(metric)


@attrs.frozen(eq=False)
class ProjectDeployment(Deployment):
    """All models of one project together: on it a store counts what they share.

    No request is sent through it. What cools its project or its keys down does not concern it: whatever is
    counted on it was granted on one of its models. So its scopes, of which stores expect four, are its own.

    That of spending counts the requests of ten minutes, the time over which a provider limits what a project
    spends: so many requests cost about the same.
    """

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        kinds = ("", ":key", ":project", ":provider")
        object.__setattr__(self, "scopes", tuple(Scope(f"{self.model_scope}{kind}") for kind in kinds))

    @classmethod
    def of(cls, deployment: Deployment) -> ProjectDeployment:
        """Return that of the project of a deployment; for some time always the same one."""
        return _of_project(deployment.key.provider, deployment.key.project, EVERY_MODEL)

    @classmethod
    def spending_of(cls, deployment: Deployment) -> ProjectDeployment:
        """Return that of the spending of the project of a deployment, likewise."""
        return _of_project(deployment.key.provider, deployment.key.project, SPENDING)

    def quota_name(self, metric: str) -> str:
        """Return what a refusal for want of a quota of the project is called."""
        return f"{self.limit_name(metric)}{OF_PROJECT}"


@lru_cache(maxsize=512)
def _of_project(provider: str, project: str, model: str) -> ProjectDeployment:
    quotas = (_SPENDING_QUOTA,) if model == SPENDING else ()
    return ProjectDeployment(Key(project, Secret("-"), provider, project), model, quotas=quotas)
