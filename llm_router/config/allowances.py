"""What a configuration allows: the limits of each workload, summed up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Metric

__all__ = ["Allowance", "allowances"]


@attrs.frozen
class Allowance:
    """What the deployments of one workload allow together; a quota that keys share counts once.

    Attributes:
        workload: The workload.
        limits: The sum of the known limits, by metric; only of metrics that some deployment limits.
        unlimited: The metrics that some deployment does not limit.
        unknown: The models of which some limit is left to be learnt.
    """

    workload: str
    limits: Mapping[Metric, int]
    unlimited: frozenset[Metric]
    unknown: tuple[str, ...]


def allowances(deployments: Iterable[Deployment], workloads: Iterable[str]) -> list[Allowance]:
    """Return what each of the workloads allows that some deployment serves, in their order."""
    by_workload: dict[str, dict[str, Deployment]] = {name: {} for name in workloads}
    for deployment in deployments:
        by_workload[deployment.workload].setdefault(deployment.model_scope, deployment)
    return [_allowance(name, found.values()) for name, found in by_workload.items() if found]


def _allowance(workload: str, deployments: Iterable[Deployment]) -> Allowance:
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
    return Allowance(workload, limits, frozenset(unlimited), tuple(unknown))
