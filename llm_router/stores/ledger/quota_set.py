"""The quotas of a deployment with their ledgers, and the decisions that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from llm_router.domain.calendar import NEVER, microseconds, midnights, seconds
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import DeploymentSnapshot, QuotaSnapshot, Refusal, Taking
from llm_router.stores.ledger.base import Ledger
from llm_router.stores.ledger.bounds import bounded
from llm_router.stores.ledger.ledgers import DailyLedger, RollingLedger, SteadyLedger
from llm_router.stores.ledger.limits import StoredLimit

__all__ = ["QuotaLedger", "QuotaSet", "carry_over", "learnt_quota", "look", "make_ledger", "terms_in_force"]


def make_ledger(quota: Quota, limit: int | None = None) -> Ledger:
    """Return an empty ledger for ``quota``, under ``limit`` instead of the quota's own if one is given."""
    limit = quota.limit if limit is None else limit
    match quota.refill:
        case Refill.ROLLING:
            return RollingLedger(quota, limit)
        case Refill.STEADY:
            return SteadyLedger(quota, limit)
        case Refill.DAILY:
            return DailyLedger(quota, limit)


def carry_over(old: Ledger, new: Ledger, quota: Quota, now: int) -> None:
    """Let a ledger of ``quota`` take the place of one of another kind, and count what still counts there."""
    old.successor = new
    if quota.refill is Refill.DAILY:
        since = midnights(now, quota.timezone)[0]
    else:
        since = now - microseconds(quota.window + quota.guard)
    amount, at = old.taken_since(since, now)
    if amount > 0:
        new.take(amount, now if quota.refill is Refill.DAILY else at)


def _last(ledger: Ledger) -> Ledger:
    while ledger.successor is not None:
        ledger = ledger.successor
    return ledger


class QuotaLedger:
    """One quota with its ledger, shared by the deployments of one (provider, project, model).

    Attributes:
        quota: The quota, as configured or learnt.
        ledger: What is taken, under the limit in force.
        limit_expires: When that limit ends if it is a learnt one, else NEVER; in microseconds.
        learnt: What was learnt of the limit, or None.
    """

    __slots__ = ("counts_tokens", "is_daily", "learnt", "ledger", "limit_expires", "quota")

    def __init__(self, quota: Quota, ledger: Ledger) -> None:
        self.quota = quota
        self.ledger = ledger
        self.limit_expires = NEVER
        self.learnt: StoredLimit | None = None
        self.counts_tokens = quota.metric.counts_tokens
        self.is_daily = quota.refill is Refill.DAILY

    def room_at(self, amount: int, now: int) -> int:
        """Return when ``amount`` fits, possibly now: at the latest when a learnt limit ends."""
        room_at = self.ledger.room_at(amount, now) if amount else now
        return min(room_at, self.limit_expires) if room_at > now else now


class QuotaSet:
    """The quotas of one deployment, or of one reservation, looked up once.

    Attributes:
        ledgers: The quotas with their ledgers.
        valid_until: Until when these limits are in force, in microseconds.
        version: The store's version of the limits.
    """

    __slots__ = ("_rows", "ledgers", "valid_until", "version")

    def __init__(self, ledgers: tuple[QuotaLedger, ...], valid_until: int, version: int) -> None:
        self.ledgers = ledgers
        self.valid_until = valid_until
        self.version = version
        self._rows = tuple((each.counts_tokens, each.is_daily, each.ledger) for each in ledgers)

    def fits(self, requests: int, tokens: int, now: int) -> bool:
        """Return whether every quota has room for a demand now."""
        for counts_tokens, _, ledger in self._rows:
            amount = tokens if counts_tokens else requests
            if ledger.taken + amount > ledger.capacity and amount and ledger.room_at(amount, now) != now:
                return False
        return True

    def take(self, requests: int, tokens: int, now: int) -> tuple[list[int], float, float]:
        """Take what fits; return the marks, the headroom and the daily headroom (see :class:`Decision`)."""
        marks = []
        headroom = daily_headroom = 1.0
        for counts_tokens, is_daily, ledger in self._rows:
            marks.append(ledger.take(tokens if counts_tokens else requests, now))
            used, limit = ledger.taken, ledger.limit
            share = 1.0 - used / limit if used < limit else 0.0
            if is_daily:
                if share < daily_headroom:  # noqa: PLR1730 - three times as fast as min()
                    daily_headroom = share
            elif share < headroom:
                headroom = share
        return marks, headroom, daily_headroom

    def correct(self, marks: Sequence[int], requests: int, tokens: int, now: int) -> None:
        """Change what was taken at ``marks`` by ``requests`` and ``tokens``.

        In a ledger that another one has replaced nothing can be given back; what was used more counts now.
        """
        for (counts_tokens, _, ledger), mark in zip(self._rows, marks, strict=True):
            change = tokens if counts_tokens else requests
            if not change:
                continue
            if ledger.successor is None:
                ledger.correct(mark, change, now)
            elif change > 0:
                _last(ledger).take(change, now)

    def charge(self, takings: Iterable[Taking], now: int) -> None:
        """Count what was taken, each at its own time, whether or not it fits."""
        for taking in takings:
            at, used = microseconds(taking.at), bounded(taking.used)
            for counts_tokens, _, ledger in self._rows:
                ledger.charge(used.tokens if counts_tokens else used.requests, at, now)

    def refuse(self, deployment: Deployment, cooldown: Cooldown | None, demand: Demand, now: int) -> Refusal:
        """Return when ``demand``, which does not fit now, will fit, and what it waits for the longest."""
        retry_at, reason = now, ""
        if cooldown is not None:
            retry_at, reason = microseconds(cooldown.until), cooldown.reason
        wake_at = retry_at
        for each in self.ledgers:
            amount = demand.tokens if each.counts_tokens else demand.requests
            if each.ledger.taken + (amount or 1) <= each.ledger.capacity:
                continue  # neither this demand nor the smallest one has to wait for it
            room_at = each.room_at(amount, now)
            if room_at > retry_at:
                retry_at, reason = room_at, each.quota.metric.value
            # The deployment is of no use to any caller until the smallest demand fits.
            wake_at = max(wake_at, room_at if amount == 1 else each.room_at(1, now))
        return Refusal(deployment, reason, seconds(retry_at), seconds(min(wake_at, retry_at)), cooldown)

    def describe(self, deployment: Deployment, cooldown: Cooldown | None, now: int) -> DeploymentSnapshot:
        """Return the state of every quota."""
        quotas = []
        for each in self.ledgers:
            ledger = each.ledger
            resets_at = seconds(ledger.resets_at(now))
            learnt = each.learnt.record() if each.learnt is not None else None
            quotas.append(QuotaSnapshot(each.quota.metric, ledger.limit, ledger.used(now), resets_at, learnt))
        return DeploymentSnapshot(deployment, tuple(quotas), cooldown)


def learnt_quota(metric: Metric, limit: int) -> Quota:
    """Return the quota that a learnt limit creates where none is configured."""
    return Quota(metric, limit, Refill.DAILY if metric.is_daily else Refill.ROLLING)


def terms_in_force(
    deployment: Deployment, learnt: Mapping[Metric, StoredLimit], now: int
) -> Iterator[tuple[Quota, int, int]]:
    """Yield each quota of a deployment, its limit in force, and when that changes (NEVER if configured).

    Args:
        deployment: The deployment.
        learnt: The limits learnt for the scope of its model.
        now: In microseconds.
    """
    configured = {quota.metric: quota for quota in deployment.quotas}
    for metric, quota in configured.items():
        limit, until = learnt[metric].in_force(now) if metric in learnt else (quota.limit, NEVER)
        if limit < quota.limit or (quota.adaptive and until < NEVER):
            yield quota, limit, until
        else:
            yield quota, quota.limit, NEVER
    for metric in Metric:
        if metric in learnt and metric not in configured:
            limit, until = learnt[metric].in_force(now)
            yield learnt_quota(metric, limit), limit, until


def look(
    ledgers: Mapping[Metric, QuotaLedger],
    deployment: Deployment,
    learnt: Mapping[Metric, StoredLimit],
    now: int,
) -> QuotaSet:
    """Return what the quotas of a deployment show, without putting the ledgers under its terms.

    Args:
        ledgers: Those of its model, under the terms of whoever took from them last.
        deployment: The deployment.
        learnt: The limits learnt for the scope of its model.
        now: In microseconds.
    """
    seen = []
    for quota, limit, _ in terms_in_force(deployment, learnt, now):
        each = QuotaLedger(quota, _seen(ledgers.get(quota.metric), quota, limit, now))
        each.learnt = learnt.get(quota.metric)
        seen.append(each)
    return QuotaSet(tuple(seen), NEVER, 0)


def _seen(present: QuotaLedger | None, quota: Quota, limit: int, now: int) -> Ledger:
    """Return a ledger under given terms that counts what the present one does; a copy if its terms differ."""
    if present is None:
        return make_ledger(quota, limit)
    if present.quota == quota and present.ledger.limit == limit:
        return present.ledger
    copy = make_ledger(present.quota, present.ledger.limit)
    copy.load(present.ledger.dump())
    if present.quota.refill is quota.refill:
        copy.configure(quota, limit)
        return copy
    changed = make_ledger(quota, limit)
    carry_over(copy, changed, quota, now)
    return changed
