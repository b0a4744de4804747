"""Suspect what refusals suggest: keys that are probably of one project, and traffic that is not counted here.

A refusal for want of requests that comes while our own count is well below the limit that it states has
another cause than our requests. If another project is refused at the same moment, time and again, both are
probably one; otherwise another program uses the quota. One refusal may have many causes, so it says nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import attrs

from llm_router.domain.deployment import Deployment
from llm_router.domain.kinds import FaultScope, Metric
from llm_router.domain.quota import MINUTE, Refill
from llm_router.domain.status import FactStatus
from llm_router.errors import ProviderError
from llm_router.stores.base import QuotaSnapshot

__all__ = ["REMEMBERED", "Suspicions"]

REMEMBERED = 3600.0
"""Seconds for which an unexplained refusal counts."""

_BELOW = 0.8
"""The share of a limit below which our own requests do not explain a refusal."""

_TOGETHER = 10.0
"""Seconds within which refusals of two projects are one event."""

_MINUTES = 3
"""Minutes with an unexplained refusal before that is more than chance."""

_PER_MODEL, _MODELS = 120, 256
"""Refusals that are remembered of a model, and models."""


@attrs.frozen
class _Unexplained:
    """A refusal that our own count does not explain."""

    at: float
    project: str
    key_id: str
    metric: Metric
    used: int
    limit: int

    @property
    def minute(self) -> int:
        return int(self.at // MINUTE)


class Suspicions:
    """What the refusals of the last hour suggest, as far as this process saw them."""

    def __init__(self) -> None:
        self._by_model: OrderedDict[tuple[str, str], deque[_Unexplained]] = OrderedDict()

    def note(
        self, deployment: Deployment, error: ProviderError, quotas: Sequence[QuotaSnapshot], now: float
    ) -> None:
        """Note a refusal for want of quota, unless our own count explains it.

        Args:
            deployment: What was refused.
            error: The refusal.
            quotas: The quotas of the deployment, after the refused request was given back.
            now: Seconds since the Unix epoch.
        """
        if error.scope is not FaultScope.DEPLOYMENT:
            return
        found = _unexplained(deployment, error, quotas, now)
        if found is None:
            return
        name = deployment.key.provider, deployment.model
        known = self._by_model.setdefault(name, deque(maxlen=_PER_MODEL))
        self._by_model.move_to_end(name)
        if len(self._by_model) > _MODELS:
            self._by_model.popitem(last=False)
        known.append(found)

    def about(self, deployment: Deployment, now: float) -> list[FactStatus]:
        """Return what the refusals of a deployment suggest: one fact at most."""
        if not self._by_model:
            return []
        known = self._by_model.get((deployment.key.provider, deployment.model), ())
        recent = [each for each in known if now - REMEMBERED < each.at <= now]
        project = deployment.key.project
        own = [each for each in recent if each.project == project]
        minutes = {each.minute for each in own}
        if len(minutes) < _MINUTES:
            return []
        others = [each for each in recent if each.project != project]
        together = sorted(
            name
            for name in {each.project for each in others}
            if 2 * len(_coinciding(own, [each for each in others if each.project == name]))
            >= max(len(minutes), _MINUTES)
        )
        last = own[-1]
        if together:
            keys = sorted({each.key_id for each in others if each.project in together})
            words = (
                f"refused together with {', '.join(keys)} in {len(minutes)} minutes of the last hour, below "
                f"the limit: probably one project, which `llm-router keys test --projects` proves; then give "
                f'these keys one "project" in keys.json'
            )
            return [FactStatus(kind="shared_project", at=last.at, words=words, keys=keys)]
        words = (
            f"refused in {len(minutes)} minutes of the last hour, at last with {last.used} of {last.limit} "
            f"{last.metric.value} counted here: something that does not use this store spends the quota, too"
        )
        return [FactStatus(kind="outside_traffic", at=last.at, words=words, keys=[])]


def _unexplained(
    deployment: Deployment, error: ProviderError, quotas: Iterable[QuotaSnapshot], now: float
) -> _Unexplained | None:
    """Return a refusal if all that it names are quotas of requests, far from the limits that it states.

    A limit that we only believe in may be wrong, and a request may have more tokens than what is left: then
    the count says nothing.
    """
    steady = {quota.metric for quota in deployment.quotas if quota.refill is Refill.STEADY}
    counted = {quota.metric: quota.used for quota in quotas}
    found: _Unexplained | None = None
    for violation in error.violations:
        metric, limit = violation.metric, violation.limit
        if metric is None or metric.counts_tokens or metric in steady or metric not in counted:
            return None
        if not limit or counted[metric] >= _BELOW * limit:
            return None
        key = deployment.key
        found = found or _Unexplained(now, key.project, key.key_id, metric, counted[metric], limit)
    return found


def _coinciding(own: Iterable[_Unexplained], others: Sequence[_Unexplained]) -> set[int]:
    """Return the minutes in which a refusal and one of the others came together."""
    return {each.minute for each in own if any(abs(each.at - other.at) <= _TOGETHER for other in others)}
