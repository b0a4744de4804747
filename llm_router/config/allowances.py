"""What a configuration allows: the limits of each workload, and of what serves none, summed up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.methods import serves_any
from llm_router.domain.quota import Metric

__all__ = ["Allowance", "allowances", "named_allowances"]


@attrs.frozen
class Allowance:
    """What the deployments of one workload or model allow together; a quota that keys share counts once.

    Attributes:
        name: The workload, or the model.
        limits: The sum of the known limits, by metric; only of metrics that some deployment limits.
        unlimited: The metrics that some deployment does not limit.
        unknown: The models of which some limit is left to be learnt.
    """

    name: str
    limits: Mapping[Metric, int]
    unlimited: frozenset[Metric]
    unknown: tuple[str, ...]


def allowances(deployments: Iterable[Deployment], workloads: Iterable[str]) -> list[Allowance]:
    """Return what each of the workloads allows that some deployment serves, in their order."""
    serving = (each for each in deployments if serves_any(each.methods))
    return _allowances(((each.workload, each) for each in serving), workloads)


def named_allowances(deployments: Iterable[Deployment]) -> list[Allowance]:
    """Return what each model allows that serves no workload: one for embeddings, images or speech."""
    return _allowances((each.model, each) for each in deployments if not serves_any(each.methods))


def _allowances(named: Iterable[tuple[str, Deployment]], order: Iterable[str] = ()) -> list[Allowance]:
    found: dict[str, dict[str, Deployment]] = {name: {} for name in order}
    for name, deployment in named:
        found.setdefault(name, {}).setdefault(deployment.model_scope, deployment)
    return [_allowance(name, each.values()) for name, each in found.items() if each]


def _allowance(name: str, deployments: Iterable[Deployment]) -> Allowance:
    limits: dict[Metric, int] = {}
    unlimited: set[Metric] = set()
    unknown: dict[str, None] = {}
    for deployment in deployments:
        quotas = {quota.metric: quota for quota in deployment.quotas}
        if any(quota.limit == 0 for quota in quotas.values()):  # nothing can be sent through it
            limits = dict.fromkeys(quotas, 0) | limits
            continue
        unlimited |= {metric for metric in Metric if metric not in quotas}
        for quota in quotas.values():
            if quota.adaptive:
                unknown[deployment.model] = None
            else:
                limits[quota.metric] = limits.get(quota.metric, 0) + quota.limit
    return Allowance(name, limits, frozenset(unlimited), tuple(unknown))
