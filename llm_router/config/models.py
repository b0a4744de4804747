"""Limits and workloads of models: the built-in table, and how limits become quotas.

The table is the only place in the library that knows models by name; keys.json overrides all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs

from llm_router.domain.quota import Metric, Quota, Refill

__all__ = ["BUILT_IN", "Limits", "Model", "quotas"]

Limits: TypeAlias = Mapping[Metric, int | None]
"""Limits as they were stated: None means unlimited, an absent metric was not mentioned."""


@attrs.frozen
class Model:
    """The defaults for all deployments of a model.

    Attributes:
        limits: The limits.
        workload: The workload that the model is meant for, or None if it is not stated.
        refill: How the per-minute quotas refill: rolling or steady.
        burst: The size of the steady bucket of ``rpm``, in requests; None for the default of a quota.
    """

    limits: Limits = attrs.field(factory=dict)
    workload: str | None = None
    refill: Refill = Refill.ROLLING
    burst: int | None = None


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


def quotas(limits: Limits, model: Model, guard: float) -> tuple[Quota, ...]:
    """Return the quotas for ``limits``, in the order of :class:`Metric`; unlimited metrics have none.

    A burst above its limit is lowered to it. Daily quotas refill at midnight, whatever the model's refill.

    Args:
        limits: The limits, merged from all sources.
        model: The refill and burst of the model; its limits are not read.
        guard: Seconds added to the window of each quota.
    """
    made = []
    for metric in Metric:
        limit = limits.get(metric)
        if limit is None:
            continue
        refill = Refill.DAILY if metric.is_daily else model.refill
        burst = model.burst if metric is Metric.RPM and refill is Refill.STEADY else None
        burst = burst and min(burst, max(limit, 1))
        made.append(Quota(metric, limit, refill, guard=guard, burst=burst))
    return tuple(made)
