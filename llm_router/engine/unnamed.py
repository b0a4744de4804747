"""Tell what a refusal that names nothing is for: requests or tokens, by what was counted when it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.quota import Metric
from llm_router.engine.evidence import LATEST, LIKELY, Circumstances, Inference, begin_to_count
from llm_router.stores.base import QuotaSnapshot

__all__ = ["counting_tokens", "is_refuted", "most_likely", "taken_for_tokens"]

_ALIKE, _OTHER = 0.15, 0.2
"""The shares by which counts differ at most that are about the same, and at least if they are others."""


def most_likely(
    counted: Mapping[Metric, QuotaSnapshot], when: Circumstances
) -> tuple[Metric, tuple[LearntLimit, ...]]:
    """Return what a refusal is about that names nothing, and what is to be forgotten if that is news.

    Args:
        counted: The quotas after the refused request was given back.
        when: The circumstances.
    """
    if mistaken := _mistaken(counted, when):
        return Metric.TPM, (mistaken,)
    if refuted := _refuted(counted, when):
        return Metric.RPM, (refuted,)
    return _fullest(counted), ()


def counting_tokens(inference: Inference, quotas: Sequence[QuotaSnapshot]) -> Inference:
    """Return what a refusal without a name says where its count does not explain it: it may be for tokens.

    So these are counted from then on, if they are not yet.
    """
    counted = {quota.metric for quota in quotas}
    is_for_minute = not (inference.is_explained or inference.is_starved or inference.is_day_confirmed)
    if not is_for_minute or Metric.RPM not in counted or Metric.TPM in counted:
        return inference
    return attrs.evolve(inference, learnt=(*inference.learnt, begin_to_count(Metric.TPM)))


def taken_for_tokens(inference: Inference) -> int:
    """Return the limit of tokens that is learnt in place of one of requests; 0 if none is."""
    learnt = {entry.metric: entry.limit for entry in inference.learnt}
    return learnt.get(Metric.TPM) or 0 if learnt.get(Metric.RPM, 0) is None else 0


def is_refuted(inference: Inference) -> bool:
    """Return whether a limit of tokens is forgotten, since refusals go on at far fewer."""
    return any(entry.metric is Metric.TPM and entry.limit is None for entry in inference.learnt)


def _fullest(counted: Mapping[Metric, QuotaSnapshot]) -> Metric:
    """Return the metric of which the most is used; that of requests if it is not much of any."""
    minutes = [quota for metric, quota in counted.items() if not metric.is_daily and quota.limit > 0]
    fullest = max(minutes, key=lambda quota: quota.used / quota.limit, default=None)
    if fullest is None or fullest.used < LIKELY * fullest.limit:
        return Metric.RPM
    return fullest.metric


def _mistaken(counted: Mapping[Metric, QuotaSnapshot], when: Circumstances) -> LearntLimit | None:
    """Return what has the limit of requests forgotten, if refusals without a name are for tokens.

    That is so if several in a row come at about as many tokens, but at other numbers of requests, this one
    below the limit that the ones before were taken for. Two may do so by chance, where others use the quota.
    """
    requests, tokens = counted.get(Metric.RPM), counted.get(Metric.TPM)
    if requests is None or tokens is None or requests.learnt is None or when.repeated or when.first_tokens:
        return None
    is_inferred = requests.learnt.source is LimitSource.INFERRED and requests.used < requests.learnt.limit
    before = [{quota.metric: quota.used for quota in quotas} for quotas in when.latest]
    if not is_inferred or len(before) < LATEST:
        return None
    counts = [*(used.get(Metric.RPM, 0) for used in before), requests.used]
    amounts = [*(used.get(Metric.TPM, 0) for used in before), tokens.used]
    are_others = _differ(counts) > max(1, _OTHER * max(counts))
    are_alike = min(amounts) > 0 and _differ(amounts) <= _ALIKE * max(amounts)
    if not (are_others and are_alike):
        return None
    return LearntLimit(Metric.RPM, None, replaces=requests.learnt.learnt_at)


def _refuted(counted: Mapping[Metric, QuotaSnapshot], when: Circumstances) -> LearntLimit | None:
    """Return what has a limit of tokens forgotten, if refusals were wrongly taken for tokens.

    That is so if they go on at far fewer: others use the quota, and no number of tokens is its limit.
    """
    tokens = counted.get(Metric.TPM)
    if tokens is None or tokens.learnt is None or when.repeated:
        return None
    if tokens.learnt.source is not LimitSource.INFERRED:
        return None
    is_far_less = tokens.used + when.tokens < LIKELY * when.first_tokens
    return LearntLimit(Metric.TPM, None, replaces=tokens.learnt.learnt_at) if is_far_less else None


def _differ(amounts: Sequence[int]) -> int:
    return max(amounts) - min(amounts)
