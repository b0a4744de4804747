"""What is known of models: the built-in table, and what keys.json says of its own.

The table is the only place that knows a model by its name, and whatever it says is a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs

from llm_router.domain.quota import Metric, Quota, Refill

__all__ = ["BUILT_IN", "Limits", "Model", "quotas"]

Limits: TypeAlias = Mapping[Metric, int | None]
"""Limits as they were stated: None is unlimited, a metric that is absent was not mentioned."""


@attrs.frozen
class Model:
    """What holds for every deployment of a model, unless the deployment says otherwise.

    Attributes:
        limits: Its limits.
        workload: The workload that it is meant for, or None when nobody said.
        refill: How its per-minute quotas come back: rolling or steady.
        burst: Size of the steady bucket of ``rpm``, in requests; None for the default of a quota.
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
"""The models known without a word in keys.json."""


def quotas(limits: Limits, model: Model, guard: float) -> tuple[Quota, ...]:
    """Return the quotas for ``limits``, in the order of :class:`Metric`; unlimited metrics have none.

    A burst above a limit is lowered to it. Daily quotas come back at midnight whatever the model's refill.

    Args:
        limits: The limits, all sources merged.
        model: How they come back.
        guard: Seconds added to a window.
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
