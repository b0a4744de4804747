"""Decide what refusals and answers say about limits: the controller of learnt limits, without any I/O.

A refusal that names a number is believed. One without teaches what was admitted in the window before it: the
store's own count then refuses in time. A learnt limit rises by itself after a while, by one request, for all
who share the store: if that earns a refusal, the next try waits twice as long; if a window passes without
one, the steps become longer. Where nothing is known, a few requests go first, and more with each answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from llm_router.domain.calendar import next_midnight
from llm_router.domain.deployment import Deployment
from llm_router.domain.limits import LearntLimit, LimitRecord, LimitSource
from llm_router.domain.quota import MAX_LIMIT, MINUTE, PROVIDER_TIMEZONE, Metric, Refill
from llm_router.engine.evidence import (
    LIKELY,
    WINDOW,
    Circumstances,
    Growth,
    Inference,
    begin_to_count,
    is_in_part,
)
from llm_router.engine.unnamed import most_likely
from llm_router.errors import ProviderError
from llm_router.stores.base import QuotaSnapshot

__all__ = [
    "FIRST_WAIT",
    "LONGEST_WAIT",
    "SELDOM",
    "after_answer",
    "after_refusal",
    "counted_since",
    "first_inferences",
    "for_another_project",
    "longest_wait",
]

FIRST_WAIT = 120.0
"""Seconds after which one request more is tried for the first time."""

LONGEST_WAIT = 1800.0
"""Most seconds between two such tries. At a limit of 10 a minute each costs one refusal of 300 requests; half
of it is how long a limit that was raised goes unnoticed, on average."""

SELDOM = 86_400.0
"""The same where a limit is seldom used up: then it is tried about as often as it is."""

_FEW = 10
"""Limits below this are tried less often: at 2 a minute after five times as long, for the same share."""

_VERY_FEW = 5
"""Limits that follow the traffic of others are tried every minute; one of a single request waits so many
minutes, since a try is as many again."""

_PROVEN_AFTER = 10.0
"""Seconds after which a limit that was raised has proven itself, if more than before was admitted: at a limit
that is spent, the first request more is refused at once."""

_CHECK = 600.0
"""Seconds after which an answer at a known limit is a reason to look for what others have learnt."""

_DAY_SPENT = 3600.0
"""Seconds for which refusals have no explanation before they are taken for those of a spent day."""

_LOWERED = 4
"""A refusal below a limit lowers it by at most one part of this many."""

_NEARLY = 0.9
"""The share of a day's limit from which on every answer is looked at that is the last of a quota; also that
of a token limit below which no estimate is to blame."""

_UNTRIED = 1.5 * 86_400.0
"""Seconds for which the limit of a minute is not raised once its day is spent, if the day is spent before a
second try would be due: more than a day, so that one that is spent every day goes without."""

_SHORTEST_PAUSE = 3.0

_UNKNOWN_GROWTH = 8
"""Where nothing is known, each answer at the limit raises it by one part of this many: by one of eight."""

_TOKEN_STEP = 100
"""A step of a token limit is one part of this many."""

_CHANCE = 600.0
"""Seconds between two refusals of tokens that are put down to the estimates, which cannot be exact."""

_SMALL = 4
"""How many times as much must have been admitted as was refused, for that to show a token limit exactly."""

_TOKEN_WAIT = 1800.0
"""Seconds after which a token limit that was lowered is raised: that it is exact shows only in refusals."""

_MARGIN = 40
"""A refusal that comes sooner lowers a token limit by one part of this many."""


def after_refusal(
    error: ProviderError, deployment: Deployment, quotas: Sequence[QuotaSnapshot], when: Circumstances
) -> Inference:
    """Return what a refusal for want of quota says about the limits of a deployment.

    Args:
        error: The refusal.
        deployment: The deployment.
        quotas: Its quotas after the refused request was given back.
        when: The circumstances.
    """
    counted = {quota.metric: quota for quota in quotas}
    stated = _named(error)
    daily = {metric: limit for metric, limit in stated.items() if metric.is_daily}
    if not stated and _is_day_over(counted, when):
        daily, when = {Metric.RPD: None}, attrs.evolve(when, strikes=max(when.strikes, 1))
    if daily:
        return _day_spent(daily, counted, deployment, when)
    steady = {quota.metric for quota in deployment.quotas if quota.refill is Refill.STEADY}
    learnt: list[LearntLimit] = []
    is_explained, pause, counted_in, is_starved = True, 0.0, math.inf, True
    if not stated:
        likely, forgotten = most_likely(counted, when)
        stated, learnt = {likely: None}, [*forgotten]
    for metric, limit in stated.items():
        if limit is None and metric not in counted:
            learnt.append(begin_to_count(metric))
            is_explained = is_starved = False
            continue
        quota, judge = counted.get(metric), _tokens_refused if metric.counts_tokens else _admitted
        when = attrs.evolve(when, window=_window(deployment, metric))
        if metric in steady:
            quota, judge = (quota, _steadily_refused) if limit is None else (None, _admitted)
        entry, is_closed = judge(metric, limit, quota, when)
        is_explained = is_explained and is_closed
        is_starved = is_starved and quota is not None and quota.used < 1
        if entry is not None:
            learnt.append(entry)
        if quota is not None and quota.used and quota.limit and quota.learnt is not None:
            pause = max(_SHORTEST_PAUSE, MINUTE / quota.limit) * (when.window / WINDOW)
            if is_in_part(quota, when.now, when.window):
                counted_in = quota.learnt.learnt_at + when.window - when.now
    return Inference(tuple(learnt), is_explained, pause=pause, counted_in=counted_in, is_starved=is_starved)


def _window(deployment: Deployment, metric: Metric) -> float:
    """Return the seconds after which what was admitted of a rolling quota no longer counts."""
    rolling = (each for each in deployment.quotas if each.refill is Refill.ROLLING)
    return next((each.window + each.guard for each in rolling if each.metric is metric), WINDOW)


def _named(error: ProviderError) -> dict[Metric, int | None]:
    """Return the metrics that a refusal names, and for each the lowest limit that it states, if any."""
    named: dict[Metric, int | None] = {}
    for violation in error.violations:
        if violation.metric is not None:
            limits = (violation.limit, named.get(violation.metric))
            named[violation.metric] = min((limit for limit in limits if limit is not None), default=None)
    return named


def _is_day_over(counted: Mapping[Metric, QuotaSnapshot], when: Circumstances) -> bool:
    """Return whether a refusal that names nothing is one of a spent day."""
    day = counted.get(Metric.RPD)
    if day is not None and day.learnt is not None and day.used >= day.learnt.limit:
        # One more was tried than yesterday. But if one more is tried in this minute as well, it may be that.
        return not _is_tried(counted.get(Metric.RPM))
    return when.strikes > 0 and when.now - when.since >= _DAY_SPENT


def _is_tried(quota: QuotaSnapshot | None) -> bool:
    """Return whether so much is used that the last request was one more than a learnt limit."""
    if quota is None or quota.learnt is None:
        return False
    return quota.learnt.limit < quota.limit and quota.learnt.limit <= quota.used


def _admitted(
    metric: Metric, stated: int | None, quota: QuotaSnapshot | None, when: Circumstances
) -> tuple[LearntLimit | None, bool]:
    """Return the limit to learn for a metric, if any, and whether the count now refuses by itself."""
    as_stated = None if stated is None else _with_rise(LearntLimit(metric, stated), FIRST_WAIT)
    if quota is None or quota.used < 1 or _is_news(stated, quota.learnt, when):
        return as_stated, False
    used, record = quota.used, quota.learnt
    if record is None or record.source is LimitSource.UNKNOWN:
        if _is_doubtful(quota, stated, when):
            return as_stated, False
        # Of tokens, what was refused would not have fitted: the limit is between the two.
        used = max(used + when.tokens // 2, when.tokens) if metric.counts_tokens else used
        return _found(metric, used, stated, FIRST_WAIT), True
    if when.repeated or when.began <= record.learnt_at:
        # Each that is given back shows more exactly what was admitted; but where others use the quota as
        # well, that is less than what will be.
        is_exact = when.finding and used < record.limit
        # What was sent before need not be explained by it: others may use the quota, too, and where the
        # clock of the store is ahead of ours, much is sent "before".
        is_explained = when.repeated or used >= quota.limit
        return _found(metric, used, stated, FIRST_WAIT) if is_exact else None, is_explained
    if used >= record.limit:  # one more was tried
        return _found(metric, record.limit, stated, _wait_longer(record, when)), True
    # Less was admitted than before: the limit has changed, or others use the quota as well, more or less.
    limit = max(used, _lowered(record.limit))
    return _found(metric, limit, stated, when.window * max(1.0, _VERY_FEW / max(limit, 1) ** 2)), False


def counted_since(quota: QuotaSnapshot, began: float) -> float | None:
    """Return since when at least a quota that nobody configured is counted; None if all of it is.

    ``began`` is when its window or day began. The store counts such a quota from when something was first
    learnt of it; a limit that was inferred, or has risen, had been counted before.
    """
    record = quota.learnt
    if record is None or record.learnt_at <= began or record.source is LimitSource.INFERRED:
        return None
    return record.learnt_at if record.raise_at - record.learnt_at >= FIRST_WAIT - 1.0 else None


def _is_doubtful(quota: QuotaSnapshot, stated: int | None, when: Circumstances) -> bool:
    """Return whether what was admitted of a quota without a learnt limit may be less than its limit."""
    if is_in_part(quota, when.now, when.window):
        return True
    # Far below what is expected, the minute may be at fault: others used the quota, or the store is new. A
    # second time it is not: the first cooldown ends with the first answer, which shows only that the minute
    # is over.
    expected = quota.limit * LIKELY if stated is None else stated
    return when.strikes == 0 and not when.doubted and quota.used < expected


def _lowered(limit: int) -> int:
    return limit - max(1, limit // _LOWERED)


def _wait_longer(record: LimitRecord, when: Circumstances) -> float:
    """Return the seconds until the next try after one that has failed now."""
    longest, elapsed = longest_wait(record.limit * WINDOW / when.window), when.now - record.learnt_at
    if elapsed > longest:  # it is seldom used up
        return min(elapsed, SELDOM)
    return min(2.0 * max(when.window, record.raise_at - record.learnt_at), longest)


def longest_wait(limit: float) -> float:
    """Return most seconds between two tries of one request more than a limit, which is one of a minute."""
    return LONGEST_WAIT * max(1.0, _FEW / max(limit, 1))


def _tokens_refused(
    metric: Metric, stated: int | None, quota: QuotaSnapshot | None, when: Circumstances
) -> tuple[LearntLimit | None, bool]:
    """Return the same for tokens, of which those of what is sent are only estimated.

    So a refusal now and then is not the limit's fault; one that follows soon takes off a small part of it.
    """
    if quota is None or quota.used < 1 or quota.limit >= MAX_LIMIT:
        return _admitted(metric, stated, quota, when)
    asked = quota.used + when.tokens
    if when.repeated or (quota.learnt is not None and when.began <= quota.learnt.learnt_at):
        return None, when.repeated or asked > quota.limit
    if stated is not None and _is_news(stated, quota.learnt, when):
        return _with_rise(LearntLimit(metric, stated), FIRST_WAIT), False
    known = quota.limit if stated is None else min(stated, quota.limit)
    is_chance = quota.learnt is None or when.now - quota.learnt.learnt_at >= _CHANCE
    if is_chance and not when.strikes and not (when.doubted and asked < known * LIKELY):
        return _found(metric, known, stated, FIRST_WAIT), False  # the estimate was at fault, not the limit
    limit = known - max(1, known // _MARGIN)
    if asked < known * _NEARLY:  # no estimate is that wrong: the limit is between what was used and asked for
        limit = max(quota.used + when.tokens // 2, known - known // _LOWERED)
        if when.tokens * _SMALL <= quota.used < known * LIKELY:
            limit = quota.used + when.tokens // 2
    # A request of this size must stay possible: if it is never admitted, it is the provider's to say so.
    wait = FIRST_WAIT if quota.learnt is None else _TOKEN_WAIT
    return _found(metric, max(limit, when.tokens, 1), stated, wait), asked > limit


def _steadily_refused(
    metric: Metric,
    stated: int | None,  # noqa: ARG001 - as of the other two
    quota: QuotaSnapshot | None,
    when: Circumstances,
) -> tuple[LearntLimit | None, bool]:
    """Return the same for a quota that refills all the time, of which it is not counted what was admitted.

    So a refusal that is not the first takes off a part of the limit, but for one that follows a try.
    """
    if quota is None or when.repeated or not (when.strikes or when.doubted):
        return None, False
    record = quota.learnt
    if record is not None and when.began <= record.learnt_at:
        return None, False
    if record is not None and quota.limit > record.limit:  # one more was tried
        return _found(metric, record.limit, None, _wait_longer(record, when)), False
    return _found(metric, max(_lowered(quota.limit), 1), None, FIRST_WAIT), False


def _is_news(stated: int | None, record: LimitRecord | None, when: Circumstances) -> bool:
    """Return whether a refusal states more than the one before it: then the limit was raised meanwhile."""
    if stated is None or record is None or when.repeated or when.began <= record.learnt_at:
        return False
    return record.source is LimitSource.STATED and stated > record.limit


def _found(metric: Metric, limit: int, stated: int | None, wait: float) -> LearntLimit:
    source = LimitSource.INFERRED if stated is None or limit < stated else LimitSource.STATED
    return _with_rise(LearntLimit(metric, limit if stated is None else min(limit, stated), source), wait)


def _with_rise(learnt: LearntLimit, after: float, step: int | None = None) -> LearntLimit:
    assert learnt.limit is not None  # noqa: S101 - it is one that is in force
    step = _step(learnt.metric, learnt.limit) if step is None else step
    return attrs.evolve(learnt, raised=learnt.limit + step, raise_after=after)


def _step(metric: Metric, limit: int) -> int:
    return max(1, limit // _TOKEN_STEP) if metric.counts_tokens else 1


def _day_spent(
    daily: Mapping[Metric, int | None],
    counted: Mapping[Metric, QuotaSnapshot],
    deployment: Deployment,
    when: Circumstances,
) -> Inference:
    """Return what a refusal for the day says: once it is certain, its count is tomorrow's limit.

    Tomorrow one request more is tried.
    """
    learnt: list[LearntLimit] = []
    is_confirmed = when.strikes > 0 or not any(quota.metric.is_daily for quota in deployment.quotas)
    for metric, stated in daily.items():
        quota = counted.get(metric)
        used = 0 if quota is None else quota.used
        record = None if quota is None else quota.learnt
        known = stated if record is None else min(record.limit, stated or record.limit)
        is_confirmed = is_confirmed or (known is not None and 0 < known <= used)
    if is_confirmed:
        learnt = _after_day(counted, when)
    for metric, stated in daily.items():
        quota = counted.get(metric)
        if stated:
            entry = LearntLimit(metric, stated)
        elif quota is None:
            learnt.append(begin_to_count(metric))
            continue
        elif not is_confirmed or quota.used < 1 or _is_counted_in_part(quota, deployment, when.now):
            continue
        else:
            # What was refused was within the limit, so that is too high, whatever else is on its way.
            limit = min(quota.used, max(quota.limit - 1, 1))
            entry = LearntLimit(metric, limit, LimitSource.INFERRED)
        learnt.append(_until_tomorrow(entry, deployment, when.now))
    return Inference(tuple(learnt), is_explained=False, is_day_confirmed=is_confirmed)


def _is_counted_in_part(quota: QuotaSnapshot, deployment: Deployment, now: float) -> bool:
    """Return whether a day's quota has only been counted since its end was met today."""
    record = quota.learnt
    if record is None or record.source is not LimitSource.UNKNOWN:
        return False
    return _midnight(quota.metric, deployment, record.learnt_at) > now


def _until_tomorrow(learnt: LearntLimit, deployment: Deployment, now: float) -> LearntLimit:
    return _with_rise(learnt, _midnight(learnt.metric, deployment, now) - now)


def _midnight(metric: Metric, deployment: Deployment, now: float) -> float:
    timezones = {quota.metric: quota.timezone for quota in deployment.quotas}
    return next_midnight(now, timezones.get(metric, PROVIDER_TIMEZONE))


def _after_day(counted: Mapping[Metric, QuotaSnapshot], when: Circumstances) -> list[LearntLimit]:
    """Return what becomes of the limits of a minute at the end of a day.

    One that was inferred while in truth the day was over is what it was before. One that matters little,
    since the day is spent before a second try would be due, is not tried while that is so.
    """
    before = {quota.metric: quota.learnt for quota in when.before}
    day = counted.get(Metric.RPD)
    learnt: list[LearntLimit] = []
    for metric, quota in counted.items():
        record = quota.learnt
        if metric.is_daily or record is None:
            continue
        is_doubtful = record.source is LimitSource.INFERRED and _is_recent(record, when)
        kept = before.get(metric, record) if is_doubtful else record
        if kept is None or (is_doubtful and _is_recent(kept, when) and _wait_of(kept) == FIRST_WAIT):
            learnt.append(LearntLimit(metric, None, replaces=record.learnt_at))
            continue
        wait = max(kept.raise_at - when.now, 0.0)
        is_tried = metric is Metric.RPM and _wait_of(kept) > FIRST_WAIT and kept.raised > kept.limit
        if is_tried and day is not None and day.used * MINUTE < longest_wait(kept.limit) * kept.limit:
            wait = _UNTRIED
        elif kept.learnt_at == record.learnt_at:
            continue
        learnt.append(LearntLimit(metric, kept.limit, kept.source, kept.raised, wait, record.learnt_at))
    return learnt


def _is_recent(record: LimitRecord, when: Circumstances) -> bool:
    """Return whether a limit was learnt when the strikes began, or just before."""
    return record.learnt_at >= when.since - 2.0 * WINDOW


def _wait_of(record: LimitRecord) -> float:
    """Return how long after it was learnt a limit rises, in whole seconds: stores keep times in their way."""
    wait = record.raise_at - record.learnt_at
    return wait if wait == math.inf else float(round(wait))


def first_inferences(
    learnt: Sequence[LearntLimit], quotas: Sequence[QuotaSnapshot]
) -> tuple[LearntLimit, ...]:
    """Return those of the limits inferred for a minute before which nothing was known."""
    known = {
        quota.metric
        for quota in quotas
        if quota.learnt is not None and quota.learnt.source is not LimitSource.UNKNOWN
    }
    return tuple(
        entry
        for entry in learnt
        if not entry.metric.is_daily and entry.metric not in known and entry.source is not LimitSource.UNKNOWN
    )


def for_another_project(
    learnt: Sequence[LearntLimit], deployment: Deployment, quotas: Sequence[QuotaSnapshot]
) -> tuple[LearntLimit, ...]:
    """Return what another project of the same model learns from what was learnt on one: where to start.

    Only where nothing is known yet, and less than that was tried.
    """
    adaptive = {quota.metric for quota in deployment.quotas if quota.adaptive}
    present = {quota.metric: quota for quota in quotas if quota.metric in adaptive}
    prior: list[LearntLimit] = []
    for entry in learnt:
        quota = present.get(entry.metric)
        if quota is None or entry.limit is None or quota.limit > entry.limit:
            continue
        record = quota.learnt
        if record is None or record.source is LimitSource.UNKNOWN:
            replaces = 0.0 if record is None else record.learnt_at
            prior.append(attrs.evolve(entry, source=LimitSource.INFERRED, replaces=replaces))
    return tuple(prior)


def after_answer(
    deployment: Deployment, quotas: Sequence[QuotaSnapshot], now: float, *, ends_day: bool = True
) -> Growth:
    """Return what an answer says of the limits of a deployment one of whose quotas is used up.

    Args:
        deployment: The deployment.
        quotas: Its quotas after the answer.
        now: Seconds since the epoch.
        ends_day: Whether the answered request took the last of a quota of the day. If not, that may have been
            one that is still on its way, and proves nothing yet.
    """
    configured = {quota.metric: quota for quota in deployment.quotas}
    minute = next((quota.limit for quota in quotas if quota.metric is Metric.RPM), MAX_LIMIT)
    learnt: list[LearntLimit] = []
    due = now + _CHECK
    for quota in quotas:
        terms = configured.get(quota.metric)
        record, is_adaptive = quota.learnt, terms is not None and terms.adaptive
        if record is None:
            if is_adaptive and quota.limit < MAX_LIMIT:  # nothing was refused so far
                due = now
                if quota.used >= quota.limit:
                    learnt.append(_one_of_eight(quota, 0.0))
        elif terms is not None and not is_adaptive and record.limit >= terms.limit:
            continue  # the configuration allows no more
        elif record.source is LimitSource.UNKNOWN:
            due = now if quota.limit < MAX_LIMIT else due
            if quota.used >= quota.limit:
                learnt.append(_one_of_eight(quota, record.learnt_at))
        else:
            is_steady = terms is not None and terms.refill is Refill.STEADY
            proof = WINDOW if is_steady else _proof(quota.metric) * _window(deployment, quota.metric) / WINDOW
            longer, look_at = _risen(quota, record, now, proof, is_steady=is_steady, ends_day=ends_day)
            if quota.metric.is_daily and look_at == math.inf:
                look_at = now + _to_last(quota, record, minute)
            due = min(due, look_at)
            if longer is not None:
                learnt.append(longer)
    return Growth(tuple(learnt), due)


def _risen(
    quota: QuotaSnapshot, record: LimitRecord, now: float, proof: float, *, is_steady: bool, ends_day: bool
) -> tuple[LearntLimit | None, float]:
    """Return a higher limit if one that was raised has proven itself, and when to look again.

    It has after ``proof`` seconds in which more than before was admitted.
    """
    proven_at = record.raise_at + proof
    if proven_at > now:
        return None, proven_at
    if is_steady:  # it never owes as much as its limit, which a window at it is the proof of
        is_proven = True
    elif quota.metric.counts_tokens and quota.used >= LIKELY * record.limit:
        # Where all requests are larger than the step, it takes several steps until one more fits.
        is_proven = quota.used > record.limit or now - record.raise_at >= _TOKEN_WAIT
    else:
        is_proven = quota.used > record.limit and (ends_day or quota.metric is not Metric.RPD)
    if is_proven:
        longer = _longer_step(quota.metric, record, proof)
        return longer, now + longer.raise_after + proof
    return None, math.inf


def _to_last(quota: QuotaSnapshot, record: LimitRecord, minute: int) -> float:
    """Return the least seconds until a day's limit may be proven too low, at so many requests a minute.

    The answer that does so may be the last of the day: it must not be missed.
    """
    left = _NEARLY * record.limit - quota.used
    return MINUTE * max(left, 0.0) / max(minute, 1) if quota.metric is Metric.RPD else 0.0


def _proof(metric: Metric) -> float:
    """Return the seconds after which a limit that was raised has proven itself."""
    if metric.is_daily:
        return 0.0
    return WINDOW if metric.counts_tokens else _PROVEN_AFTER


def _one_of_eight(quota: QuotaSnapshot, replaces: float) -> LearntLimit:
    limit = quota.limit + max(1, quota.limit // _UNKNOWN_GROWTH)
    return LearntLimit(quota.metric, limit, LimitSource.UNKNOWN, replaces=replaces)


def _longer_step(metric: Metric, record: LimitRecord, proof: float) -> LearntLimit:
    """Return the limit that has proven itself, to rise by twice as much as it just did."""
    learnt = LearntLimit(metric, record.raised, record.source, replaces=record.learnt_at)
    step = 2 * max(record.raised - record.limit, 1)
    if metric.counts_tokens:
        return _with_rise(learnt, 0.0, min(step, max(record.raised // _LOWERED, 1)))
    return _with_rise(learnt, proof, step)
