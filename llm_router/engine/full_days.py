"""Which quotas of a day are full because the provider has said so, however little of them is counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, ProjectDeployment
from llm_router.domain.kinds import Metric
from llm_router.engine.retry import DAY_SPENT
from llm_router.stores.base import QuotaSnapshot

__all__ = ["full_days"]


def full_days(
    cooldown: Cooldown | None, deployment: Deployment, quotas: Iterable[QuotaSnapshot], now: float
) -> Mapping[Metric, float]:
    """Return until when which quotas are full, in seconds since the epoch; nothing of those that are not.

    A cooldown does not say which quota of the day was refused. That is the one of which was learnt last.

    Args:
        cooldown: What refuses requests now, or None.
        deployment: What the quotas are counted on: a deployment, or all models of a project.
        quotas: The quotas.
        now: Seconds since the epoch.
    """
    if cooldown is None or cooldown.reason != DAY_SPENT or cooldown.until <= now:
        return {}
    is_shared = isinstance(deployment, ProjectDeployment)
    if cooldown.scope != (deployment.project_scope if is_shared else deployment.model_scope):
        return {}
    learnt_at = {
        quota.metric: 0.0 if quota.learnt is None else quota.learnt.learnt_at
        for quota in quotas
        if quota.metric.is_daily
    }
    latest = max(learnt_at.values(), default=0.0)
    return {metric: cooldown.until for metric, at in learnt_at.items() if at == latest}
