"""The figures of a plan: waits, what binds, when the day's quota ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.kinds import Metric
from llm_router.planning.simulation import Outcome, Setting
from llm_router.planning.traffic import Arrival

__all__ = ["Binding", "Plan", "make_plan", "percentile"]

_NOTABLE = 0.005
"""The share below which it is not worth saying that something binds."""


@attrs.frozen
class Binding:
    """What kept a model from admitting more while requests waited or were refused.

    Attributes:
        model: The model.
        metric: What was full.
        share: On how many of the model's deployments, on average, from 0 to 1.
    """

    model: str
    metric: Metric
    share: float


@attrs.frozen(kw_only=True)
class Plan:
    """What became of the traffic.

    Attributes:
        requests: How many there were.
        answered: How many were answered.
        begins: When the first came, in seconds since the Unix epoch.
        ends: When the last came.
        projects: How many projects the pool has.
        deployments: How many deployments.
        p50: Seconds that half of all requests waited at most; infinity if as many were not answered.
        p95: The same of 95 %.
        p99: The same of 99 %.
        longest: The longest wait of one that was answered, in seconds.
        by_model: How many requests each model answered, most first.
        binds: What was full while requests waited or were refused, most first.
        spent_at: When the last project of a model had spent its day's quota, in seconds since the Unix epoch
            and to a few minutes; only models of which that happened.
        unknown: The models whose limits are to be learnt: here nothing ever refuses, so their quota grows.
    """

    requests: int
    answered: int
    begins: float
    ends: float
    projects: int
    deployments: int
    p50: float
    p95: float
    p99: float
    longest: float
    by_model: Mapping[str, int]
    binds: tuple[Binding, ...]
    spent_at: Mapping[str, float]
    unknown: tuple[str, ...]


def make_plan(traffic: Sequence[Arrival], setting: Setting, outcome: Outcome) -> Plan:
    """Return the figures of a run."""
    waits = sorted(outcome.waits)
    answered = sum(outcome.by_model.values())
    full = sorted(outcome.full.items(), key=lambda each: -each[1])
    shares = ((key, count / outcome.looks) for key, count in full)
    return Plan(
        requests=len(traffic),
        answered=answered,
        begins=traffic[0].at,
        ends=traffic[-1].at,
        projects=len({(each.key.provider, each.key.project) for each in setting.deployments}),
        deployments=len(setting.deployments),
        p50=percentile(waits, 0.5),
        p95=percentile(waits, 0.95),
        p99=percentile(waits, 0.99),
        longest=waits[answered - 1] if answered else 0.0,
        by_model=dict(outcome.by_model.most_common()),
        binds=tuple(Binding(*key, share) for key, share in shares if share >= _NOTABLE),
        spent_at=outcome.spent_at,
        unknown=tuple(dict.fromkeys(each.model for each in setting.deployments if _is_unknown(each))),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that so many of ``ordered`` do not exceed."""
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]


def _is_unknown(deployment: Deployment) -> bool:
    return any(quota.adaptive for quota in deployment.quotas)
