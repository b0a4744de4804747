"""Limits and workloads of models: the built-in table, and how limits become quotas.

The table is the only place in the library that knows models by name; keys.json overrides all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import attrs

from llm_router.domain.quota import MAX_LIMIT, Metric, Quota, Refill

__all__ = ["BUILT_IN", "LEARN", "LEARNT_METRICS", "Limit", "Limits", "Model", "merged", "quotas"]

LEARN: Final = "learn"
"""What stands in place of a limit that is to be learnt."""

Limit: TypeAlias = int | Literal["learn"] | None
"""A limit as it was stated: a cap, :data:`LEARN`, or None for unlimited."""

Limits: TypeAlias = Mapping[Metric, Limit]
"""Limits as they were stated; an absent metric was not mentioned."""

LEARNT_METRICS = (Metric.RPM, Metric.TPM, Metric.RPD)
"""What is learnt of a model of which nothing is stated."""

_FIRST_RPM = 4
"""Requests a minute with which a model begins whose limit is to be learnt, and of which nothing is known."""


@attrs.frozen
class Model:
    """The defaults for all deployments of a model.

    Attributes:
        limits: The limits.
        workload: The workload that the model is meant for, or None if it is not stated.
        refill: How the per-minute quotas refill: rolling or steady.
        burst: The size of the steady bucket of ``rpm``, in requests; None for the default of a quota.
        methods: What the model can be asked for, or None for what its name says.
    """

    limits: Limits = attrs.field(factory=dict)
    workload: str | None = None
    refill: Refill = Refill.ROLLING
    burst: int | None = None
    methods: frozenset[str] | None = None


def _row(workload: str, rpm: int, tpm: int, rpd: int) -> Model:
    return Model({Metric.RPM: rpm, Metric.TPM: tpm, Metric.RPD: rpd}, workload)


BUILT_IN: Mapping[str, Model] = MappingProxyType(
    {
        "gemini-2.0-flash-exp": _row("light", rpm=15, tpm=1_000_000, rpd=1_500),
        "gemini-1.5-pro": _row("medium", rpm=2, tpm=32_000, rpd=50),
        "gemini-exp-1206": _row("heavy", rpm=2, tpm=32_000, rpd=50),
    }
)
"""The models whose limits and workload need not be stated in keys.json."""


def merged(*sources: Limits) -> tuple[dict[Metric, Limit], dict[Metric, int]]:
    """Return the limits that several sources state, and where to start learning those to be learnt.

    Args:
        sources: The limits, those that others override first. Without any, all are learnt.
    """
    limits: dict[Metric, Limit] = {}
    starts: dict[Metric, int] = {}
    for source in sources:
        for metric, limit in source.items():
            known = limits.get(metric)
            if limit == LEARN and isinstance(known, int):
                starts[metric] = known
            limits[metric] = limit
    return limits or dict.fromkeys(LEARNT_METRICS, LEARN), starts


def quotas(
    limits: Limits, model: Model, guard: float, starts: Mapping[Metric, int] = MappingProxyType({})
) -> tuple[Quota, ...]:
    """Return the quotas for ``limits``, in the order of :class:`Metric`; unlimited metrics have none.

    A burst above its limit is lowered to it. Daily quotas refill at midnight, whatever the model's refill.

    Args:
        limits: The limits, merged from all sources.
        model: The refill and burst of the model; its limits are not read.
        guard: Seconds added to the window of each quota.
        starts: Where to start learning those limits that are to be learnt.
    """
    made = []
    for metric in Metric:
        limit = limits.get(metric)
        if limit is None:
            continue
        adaptive = limit == LEARN
        if limit == LEARN:
            limit = starts.get(metric, _FIRST_RPM if metric is Metric.RPM else MAX_LIMIT)
        refill = Refill.DAILY if metric.is_daily else model.refill
        burst = model.burst if metric is Metric.RPM and refill is Refill.STEADY else None
        burst = burst and min(burst, max(limit, 1))
        made.append(Quota(metric, limit, refill, guard=guard, burst=burst, adaptive=adaptive))
    return tuple(made)
