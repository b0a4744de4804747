"""Describe a deployment as a status table shows it, and count the keys that cannot be used."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import attrs

from llm_router.domain.calendar import microseconds, midnights, seconds
from llm_router.domain.deployment import Deployment, ProjectDeployment
from llm_router.domain.forecast import pace, used_up_at
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import MAX_LIMIT, MINUTE, PROVIDER_TIMEZONE, Metric, Quota, Refill
from llm_router.domain.status import (
    DayTotals,
    FactStatus,
    FailureStatus,
    KeyState,
    KeyStatus,
    LimitStatus,
    LimitTerms,
)
from llm_router.engine.evidence import WINDOW
from llm_router.engine.full_days import full_days
from llm_router.engine.index import DeploymentState
from llm_router.engine.limits import counted_since
from llm_router.engine.paces import Paces
from llm_router.engine.pacing import PACED, Pacer
from llm_router.stores.base import DeploymentSnapshot, QuotaSnapshot

__all__ = ["Found", "count_unusable", "describe", "limit_of"]

_HOUR = 3600.0


@attrs.frozen
class Found:
    """What was found out about a deployment besides its quotas.

    Attributes:
        facts: What refusals suggest.
        failures: The last failures of the key, the latest first.
        days: What the key did with the model, by day, today first.
    """

    facts: Sequence[FactStatus] = ()
    failures: Sequence[FailureStatus] = ()
    days: Sequence[DayTotals] = ()


_NOTHING_FOUND = Found()


def describe(
    snapshot: DeploymentSnapshot,
    state: DeploymentState | None,
    now: float,
    paces: Paces | None = None,
    found: Found = _NOTHING_FOUND,
    of_project: Sequence[DeploymentSnapshot] = (),
    pacer: Pacer | None = None,
) -> KeyStatus:
    """Return the status of a deployment.

    Args:
        snapshot: What the store knows of it.
        state: What this process knows of it; None for one that is inactive.
        now: Seconds since the epoch.
        paces: What was counted before, to which this is added.
        found: What was found out besides.
        of_project: What the store knows of what all models of its project share.
        pacer: Spreads the quotas of a day in this process; None if nothing does.
    """
    deployment, cooldown = snapshot.deployment, snapshot.cooldown
    until, reason = _unusable(snapshot, state, now)
    counted = (snapshot, *of_project)
    full = [full_days(cooldown, each.deployment, each.quotas, now) for each in counted]
    limits = {
        quota.metric: limit_of(quota, deployment, now, paces, full[0].get(quota.metric))
        for quota in snapshot.quotas
    }
    usages = {
        metric: f"{limit['used']}/{'∞' if limit['limit'] is None else limit['limit']}"
        for metric, limit in limits.items()
    }
    spent = [
        each.deployment.limit_name(quota.metric.value)
        for each, ends in zip(counted, full, strict=True)
        for quota in each.quotas
        if quota.metric in ends or quota.used >= quota.limit
    ]
    full_at = (at for ends in full for at in ends.values())
    room_at = max([*(_room_at(each, state, now) for each in counted), *full_at])
    project_limits = {
        each.deployment.limit_name(quota.metric.value): limit_of(
            quota, each.deployment, now, paces, ends.get(quota.metric)
        )
        for each, ends in zip(of_project, full[1:], strict=True)
        for quota in each.quotas
    }
    is_disabled = cooldown is not None and cooldown.is_disabled
    is_quarantined = cooldown is not None and cooldown.is_quarantine and until > now
    paced_until = now
    if state is not None and pacer is not None:
        paced_until = pacer.until(deployment, deployment.workload, now)
    kind, usable_at = _usable(
        state, now, until, room_at, paced_until, is_disabled=is_disabled, is_quarantined=is_quarantined
    )
    if kind == "paced":
        reason = PACED
    return KeyStatus(
        key_id=deployment.key.key_id,
        model=deployment.model,
        provider=deployment.key.provider,
        project=deployment.key.project,
        workload=deployment.workload,
        priority=deployment.priority,
        active=state is not None,
        state=kind,
        usable_in_seconds=None if usable_at is None else max(usable_at - now, 0.0),
        usable_at=usable_at,
        in_cooldown=until > now,
        quarantined=is_quarantined,
        disabled=is_disabled,
        cooldown_until=until if now < until < math.inf else None,
        cooldown_remaining=None if until == math.inf else max(until - now, 0.0),
        reason=reason if until > now or kind == "paced" else None,
        spent=list(dict.fromkeys(spent)),
        room_in=None if room_at == math.inf else max(room_at - now, 0.0),
        limits={metric.value: limit for metric, limit in limits.items()},
        project_limits=project_limits,
        today=found.days[0] if found.days else None,
        days=list(found.days),
        facts=list(found.facts),
        failures=list(found.failures),
        rpm_usage=usages.get(Metric.RPM, "0/∞"),
        tpm_usage=usages.get(Metric.TPM, "0/∞"),
        rpd_usage=usages.get(Metric.RPD, "0/∞"),
        tpd_usage=usages.get(Metric.TPD, "0/∞"),
    )


def limit_of(
    quota: QuotaSnapshot,
    deployment: Deployment,
    now: float,
    paces: Paces | None = None,
    full_until: float | None = None,
) -> LimitStatus:
    """Return the limit in force of a quota of ``deployment``, and how it is known.

    Args:
        quota: The quota, as the store has it.
        deployment: The deployment.
        now: Seconds since the epoch.
        paces: What was counted before, to which this is added.
        full_until: Until when it is full since the provider says so; None if that is not known.
    """
    configured = {each.metric: each for each in deployment.quotas}.get(quota.metric)
    said = None if isinstance(deployment, ProjectDeployment) else configured  # nobody configured any of those
    source, learnt = quota.source_on(deployment), quota.learnt
    if source is LimitSource.CONFIGURED:
        learnt = None
    limit = quota.limit if quota.limit < MAX_LIMIT else None
    daily = quota.metric.is_daily
    window = WINDOW if configured is None else configured.window + configured.guard
    began, per_second, ends_at = now - window, None, None
    if daily:
        began, per_second, ends_at = _day(quota, configured, deployment, now, paces)
    reset_at = max(quota.resets_at, now) if ends_at is None else max(quota.resets_at, ends_at)
    left = None if limit is None else max(limit - quota.used, 0)
    used_up = None if per_second is None else used_up_at(quota.used, limit, per_second, now, reset_at)
    if full_until is not None:
        left, used_up = 0, now
    raise_at = None if learnt is None or learnt.raise_at == math.inf else learnt.raise_at
    usual = Refill.DAILY if daily else Refill.ROLLING
    return LimitStatus(
        used=quota.used,
        limit=limit,
        remaining=left,
        full_until=full_until,
        refill=(usual if configured is None else configured.refill).value,
        window_seconds=None if daily else MINUTE if configured is None else configured.window,
        configured=None if configured is None or configured.adaptive else configured.limit,
        configured_as=_terms(said),
        counted_since=None if said is not None else counted_since(quota, began),
        source=source.value,
        learnt_at=None if learnt is None else learnt.learnt_at,
        raised_at=raise_at,
        reset_in_seconds=reset_at - now,
        reset_at=reset_at,
        per_hour=None if per_second is None else per_second * _HOUR,
        used_up_in_seconds=None if used_up is None else used_up - now,
        used_up_at=used_up,
        learnt_ago=None if learnt is None else max(now - learnt.learnt_at, 0.0),
        raised_in=None if raise_at is None else max(raise_at - now, 0.0),
        resets_in=max(quota.resets_at - now, 0.0),
    )


def _terms(configured: Quota | None) -> LimitTerms:
    """Return what the configuration says of a quota."""
    if configured is None:
        return "unlimited"
    return "learn" if configured.adaptive else "cap"


def _day(
    quota: QuotaSnapshot, configured: Quota | None, deployment: Deployment, now: float, paces: Paces | None
) -> tuple[float, float, float]:
    """Return when the day began, how many are used per second of its quota at present, and when it ends."""
    timezone = PROVIDER_TIMEZONE if configured is None else configured.timezone
    began, ends, _ = midnights(microseconds(now), timezone)
    seen = () if paces is None else paces.note(deployment.model_scope, quota.metric, quota.used, now)
    return seconds(began), pace(quota.used, now, seconds(began), seen), seconds(ends)


def _usable(
    state: DeploymentState | None,
    now: float,
    until: float,
    room_at: float,
    paced_until: float,
    *,
    is_disabled: bool,
    is_quarantined: bool,
) -> tuple[KeyState, float | None]:
    """Return what is the matter with a deployment, and when it can be used at the latest; None if never."""
    unreachable_until = now if state is None else state.group.breaker.open_until
    latest = max(now, until, room_at, paced_until, unreachable_until)
    usable_at = None if state is None or latest == math.inf else latest
    if is_disabled or state is None:
        return ("disabled" if is_disabled else "inactive"), None
    if is_quarantined:
        return "quarantined", usable_at
    if until > now:
        return "cooling_down", usable_at
    if room_at > now:
        return "spent", usable_at
    if unreachable_until > now:
        return "unreachable", usable_at
    return ("paced" if paced_until > now else "ready"), usable_at


def _unusable(
    snapshot: DeploymentSnapshot, state: DeploymentState | None, now: float
) -> tuple[float, str | None]:
    """Return until when and why a deployment is not used: by any process, or by this one alone."""
    until, reason = now, None
    if snapshot.cooldown is not None:
        until, reason = snapshot.cooldown.until, snapshot.cooldown.reason
    if state is not None and state.avoided_until > until and state.refusal is not None:
        until, reason = state.avoided_until, state.refusal.reason
    return until, reason


def _spent(snapshot: DeploymentSnapshot) -> list[QuotaSnapshot]:
    return [quota for quota in snapshot.quotas if quota.used >= quota.limit]


def _room_at(snapshot: DeploymentSnapshot, state: DeploymentState | None, now: float) -> float:
    """Return when every spent quota has room for the smallest request, at the latest."""
    spent = _spent(snapshot)
    if not spent:
        return now
    steady = {
        quota.metric: quota.window for quota in snapshot.deployment.quotas if quota.refill is Refill.STEADY
    }
    latest = now
    for quota in spent:
        if quota.limit == 0:
            return math.inf
        room_at = quota.resets_at
        if quota.metric in steady:  # it comes back one by one
            missing = (quota.used - quota.limit + 1) * steady[quota.metric] / quota.limit
            room_at = min(room_at, now + missing)
        latest = max(latest, room_at)
    refusal = None if state is None else state.refusal
    if (
        refusal is not None
        and refusal.cooldown is None
        and refusal.reason in {snapshot.deployment.quota_name(quota.metric) for quota in spent}
    ):
        # What the store said of the smallest request; a snapshot knows only when all of it is back.
        return min(latest, refusal.wake_at) if refusal.wake_at > now else latest
    return latest


def count_unusable(statuses: Iterable[KeyStatus]) -> dict[str, int]:
    """Return how many active keys cannot be used, by what is the matter with them."""
    by_key: defaultdict[tuple[str, str], list[KeyStatus]] = defaultdict(list)
    for status in statuses:
        if status["active"]:
            by_key[status["provider"], status["key_id"]].append(status)
    counts = dict.fromkeys(("disabled", "quarantined", "in_cooldown", "spent", "paced"), 0)
    for rows in by_key.values():
        enabled = [row for row in rows if not row["disabled"]]
        if not enabled:
            counts["disabled"] += 1
        elif all(row["quarantined"] for row in enabled):
            counts["quarantined"] += 1
        elif all(row["in_cooldown"] for row in enabled):
            counts["in_cooldown"] += 1
        elif all(row["in_cooldown"] or row["spent"] for row in enabled):
            counts["spent"] += 1
        elif all(row["in_cooldown"] or row["spent"] or row["state"] == "paced" for row in enabled):
            counts["paced"] += 1
    return counts
