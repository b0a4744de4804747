"""Check what a router is made from: its deployments, its numbers and its store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llm_router.domain.deployment import EVERY_MODEL, SPENDING, Deployment, Scope
from llm_router.domain.methods import METHODS
from llm_router.domain.numbers import real, shown, whole
from llm_router.domain.pacing import Pacing
from llm_router.domain.quota import Quota
from llm_router.errors import ConfigError

__all__ = [
    "check_deployments",
    "check_numbers",
    "check_pacing",
    "check_policy",
    "check_store",
    "check_weights",
]

_MIN_RATE, _MAX_RATE = 1e-6, 1e9
_MIN_SHARE = 1e-6
_MIN_WEIGHT, _MAX_WEIGHT = 1e-6, 1e6
_STORE_METHODS = ("reserve", "settle", "release", "charge", "cool_down", "snapshot", "aclose")


def check_deployments(deployments: Sequence[Deployment], workloads: Sequence[str]) -> None:
    """Check the deployments of a router, one by one and against each other.

    Raises:
        ConfigError: There are no deployments, or one is wrong, appears twice, or contradicts another.
    """
    if not deployments:
        raise ConfigError("a router needs at least one active deployment: add a key to keys.json")
    seen: set[tuple[str, str]] = set()
    first: dict[Scope, Deployment] = {}
    for deployment in deployments:
        _check_alone(deployment, workloads)
        name = (deployment.key.key_id, deployment.model)
        if name in seen:
            raise ConfigError(f"deployment {deployment.id!r} is there twice: remove one")
        seen.add(name)
        other = first.setdefault(deployment.model_scope, deployment)
        mine, others = _by_metric(deployment), _by_metric(other)
        for metric in mine.keys() | others.keys():
            if mine.get(metric) != others.get(metric):
                raise ConfigError(
                    f"deployments {other.id!r} and {deployment.id!r} share the quotas of one project, but "
                    f"their {metric} differs, {others.get(metric)} and {mine.get(metric)}: state the same"
                )


def _check_alone(deployment: Deployment, workloads: Sequence[str]) -> None:
    name = f"deployment {deployment.id!r}"
    if deployment.model in (EVERY_MODEL, SPENDING):
        raise ConfigError(
            f"{name}: {deployment.model!r} stands for all models of a project: name one of them"
        )
    if deployment.workload not in workloads:
        raise ConfigError(
            f"{name} has workload {deployment.workload!r}: "
            f"use one of {', '.join(map(repr, workloads))}, or add it to workloads"
        )
    if not -math.inf < real(deployment.priority) < math.inf:
        raise ConfigError(f"{name}: priority must be a number, not {shown(deployment.priority)}")
    if not 0 <= real(deployment.weight) < math.inf:
        raise ConfigError(f"{name}: weight must be a number of 0 or more, not {shown(deployment.weight)}")
    if not deployment.methods <= METHODS or not deployment.methods:
        raise ConfigError(
            f"{name} has methods {sorted(deployment.methods)}: use some of {', '.join(sorted(METHODS))}"
        )
    if len(_by_metric(deployment)) < len(deployment.quotas):
        stated = ", ".join(f"{quota.metric.value} {quota.limit}" for quota in deployment.quotas)
        raise ConfigError(f"{name} has two quotas of one metric ({stated}): keep one")


def _by_metric(deployment: Deployment) -> dict[str, Quota]:
    return {quota.metric.value: quota for quota in deployment.quotas}


def check_numbers(
    *,
    max_retries: object,
    base_backoff: object,
    max_wait: object,
    local_share: object,
    max_requests_per_second: object,
    history_tokens: Mapping[str, object],
    workloads: Sequence[str],
) -> None:
    """Check the numbers that a router of ``workloads`` is given; a bool or a string is not a number.

    Raises:
        ConfigError: One of them is wrong; the message names it.
    """
    _require("max_retries", max_retries, "a whole number of 0 or more", ok=_is_count(max_retries))
    ok = 0 <= real(base_backoff) < math.inf
    _require("base_backoff", base_backoff, "a number of seconds, 0 or more", ok=ok)
    _require("max_wait", max_wait, "a number of seconds, 0 or more", ok=real(max_wait) >= 0)
    ok = local_share == "auto" or _MIN_SHARE <= real(local_share) <= 1
    _require("local_share", local_share, f"'auto', or above 0 (at least {_MIN_SHARE}) and at most 1", ok=ok)
    ok = max_requests_per_second is None or _MIN_RATE <= real(max_requests_per_second) <= _MAX_RATE
    rates = f"above 0 (from {_MIN_RATE:g} to {_MAX_RATE:g}), or None for no bound"
    _require("max_requests_per_second", max_requests_per_second, rates, ok=ok)
    for workload, tokens in history_tokens.items():
        name = f"history_tokens[{workload!r}]"
        if workload not in workloads and workload != "":
            raise ConfigError(f"{name} names no workload: use some of {', '.join(map(repr, workloads))}")
        _require(name, tokens, "a whole number of 0 or more", ok=_is_count(tokens))


def check_policy(policy: object, policies: Sequence[str]) -> None:
    """Check what to do while the store fails, whether or not the store can fail.

    Raises:
        ConfigError: It is not one of ``policies``.
    """
    *most, last = map(repr, policies)
    _require("on_store_failure", policy, f"{', '.join(most)} or {last}", ok=policy in policies)


def check_pacing(pacing: object, workloads: Sequence[str]) -> None:
    """Check how the quotas of a day are to be spread.

    Raises:
        ConfigError: It is no Pacing, or keeps a share for a workload that there is not.
    """
    if pacing is None:
        return
    if not isinstance(pacing, Pacing):
        raise ConfigError(f"rpd_pacing must be a Pacing, not {shown(pacing)}: write Pacing(…)")
    for workload in pacing.kept:
        if workload not in workloads:
            known = ", ".join(map(repr, workloads))
            raise ConfigError(f"rpd_pacing keeps a share for workload {workload!r}: use one of {known}")


def check_weights(weights: Mapping[object, object]) -> dict[str, float]:
    """Return the weights of tenants.

    Raises:
        ConfigError: A tenant is not a string, or its weight not a number that can be meant.
    """
    checked: dict[str, float] = {}
    for tenant, weight in weights.items():
        if not isinstance(tenant, str):
            raise ConfigError(f"tenant_weights must map strings to numbers: {shown(tenant)} is not a name")
        expected = f"above 0 (from {_MIN_WEIGHT:g} to {_MAX_WEIGHT:g})"
        ok = _MIN_WEIGHT <= real(weight) <= _MAX_WEIGHT
        _require(f"tenant_weights[{tenant!r}]", weight, expected, ok=ok)
        checked[tenant] = real(weight)
    return checked


def check_store(store: object) -> None:
    """Check that ``store`` has the methods of a store.

    Raises:
        ConfigError: It lacks one, or is a class.
    """
    lacking = [name for name in _STORE_METHODS if not callable(getattr(store, name, None))]
    if lacking or isinstance(store, type):
        remedy = "pass the URL of a store, such as memory://, or an object with the methods of RateLimitStore"
        why = (
            "a class"
            if isinstance(store, type)
            else f"an object of type {type(store).__name__} without {lacking[0]}()"
        )
        raise ConfigError(f"store must be a store, not {why}: {remedy}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and (whole(value) or 0) >= 0 and not isinstance(value, bool)


def _require(name: str, value: object, expected: str, *, ok: bool) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {expected}, not {shown(value)}")
