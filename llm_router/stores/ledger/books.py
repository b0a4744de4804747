"""The books of a deployment: its quotas with their ledgers, and what is decided by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from llm_router.domain.calendar import NEVER, microseconds, seconds
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import DeploymentSnapshot, QuotaSnapshot, Refusal
from llm_router.stores.ledger.base import Ledger
from llm_router.stores.ledger.daily import DailyLedger
from llm_router.stores.ledger.rolling import RollingLedger
from llm_router.stores.ledger.steady import SteadyLedger

__all__ = ["Book", "Shelf", "latest_cooldown", "learnt_quota", "make_ledger", "terms_in_force"]


def make_ledger(quota: Quota, limit: int | None = None) -> Ledger:
    """Open an empty book for ``quota``, under ``limit`` instead of its own where one is given."""
    limit = quota.limit if limit is None else limit
    match quota.refill:
        case Refill.ROLLING:
            return RollingLedger(quota, limit)
        case Refill.STEADY:
            return SteadyLedger(quota, limit)
        case Refill.DAILY:
            return DailyLedger(quota, limit)


class Book:
    """One quota with its ledger, as the deployments of one (provider, project, model) share it.

    Attributes:
        quota: The quota, as it is configured or learnt.
        ledger: What is taken, under the limit in force.
        holds_until: When that limit ends, where it is a learnt one; in microseconds since the epoch.
    """

    __slots__ = ("counts_tokens", "holds_until", "is_daily", "ledger", "quota")

    def __init__(self, quota: Quota, ledger: Ledger) -> None:
        self.quota = quota
        self.ledger = ledger
        self.holds_until = NEVER
        self.counts_tokens = quota.metric.counts_tokens
        self.is_daily = quota.refill is Refill.DAILY

    def room_at(self, amount: int, now: int) -> int:
        """Return when ``amount`` fits, which may be now; a learnt limit of 0 does not hold for ever."""
        room_at = self.ledger.room_at(amount, now) if amount else now
        return min(room_at, self.holds_until) if room_at > now else now


class Shelf:
    """The books of one deployment, or of one reservation, looked up once.

    Attributes:
        books: The books.
        valid_until: Until when the limits in force are these, in microseconds since the epoch.
        version: Of the limits, as its store counts it.
    """

    __slots__ = ("_rows", "books", "valid_until", "version")

    def __init__(self, books: tuple[Book, ...], valid_until: int, version: int) -> None:
        self.books = books
        self.valid_until = valid_until
        self.version = version
        self._rows = tuple((book.counts_tokens, book.is_daily, book.ledger) for book in books)

    def fits(self, requests: int, tokens: int, now: int) -> bool:
        """Tell whether every quota has room for a demand now."""
        for counts_tokens, _, ledger in self._rows:
            amount = tokens if counts_tokens else requests
            if ledger.taken + amount > ledger.capacity and amount and ledger.room_at(amount, now) != now:
                return False
        return True

    def take(self, requests: int, tokens: int, now: int) -> tuple[list[int], float, float]:
        """Take what fits; return the marks, and the shares that remain of the other and the daily quotas."""
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
        """Change what was taken at ``marks`` by so many requests and tokens."""
        for (counts_tokens, _, ledger), mark in zip(self._rows, marks, strict=True):
            change = tokens if counts_tokens else requests
            if change:
                ledger.correct(mark, change, now)

    def refuse(self, deployment: Deployment, cooldown: Cooldown | None, demand: Demand, now: int) -> Refusal:
        """Tell when ``demand`` will fit, which it does not now, and what is in the way the longest."""
        retry_at, reason = now, ""
        if cooldown is not None:
            retry_at, reason = microseconds(cooldown.until), cooldown.reason
        wake_at = retry_at
        for book in self.books:
            amount = demand.tokens if book.counts_tokens else demand.requests
            if book.ledger.taken + (amount or 1) <= book.ledger.capacity:
                continue  # neither this demand nor the smallest has to wait for it
            room_at = book.room_at(amount, now)
            if room_at > retry_at:
                retry_at, reason = room_at, book.quota.metric.value
            # Until the smallest demand fits, the deployment is of no use to anybody.
            wake_at = max(wake_at, room_at if amount == 1 else book.room_at(1, now))
        return Refusal(deployment, reason, seconds(retry_at), seconds(min(wake_at, retry_at)))

    def describe(self, deployment: Deployment, cooldown: Cooldown | None, now: int) -> DeploymentSnapshot:
        """Tell the state of every quota."""
        quotas = []
        for book in self.books:
            ledger = book.ledger
            resets_at = seconds(ledger.resets_at(now))
            quotas.append(QuotaSnapshot(book.quota.metric, ledger.limit, ledger.used(now), resets_at))
        return DeploymentSnapshot(deployment, tuple(quotas), cooldown)


def latest_cooldown(cooldowns: Mapping[Scope, Cooldown], deployment: Deployment, now: int) -> Cooldown | None:
    """Return the cooldown that ends last among those of the deployment's scopes, or None."""
    latest = None
    for scope in deployment.scopes:
        cooldown = cooldowns.get(scope)
        if cooldown is None or microseconds(cooldown.until) <= now:
            continue
        if latest is None or cooldown.until > latest.until:
            latest = cooldown
    return latest


def learnt_quota(metric: Metric, limit: int) -> Quota:
    """Return the quota that a learnt limit is where none is configured."""
    return Quota(metric, limit, Refill.DAILY if metric.is_daily else Refill.ROLLING)


def terms_in_force(
    deployment: Deployment, learnt: Mapping[Metric, tuple[int, int]]
) -> Iterator[tuple[Quota, int, int]]:
    """Yield each quota of a deployment, its limit in force, and until when that is a learnt one.

    Args:
        deployment: The deployment.
        learnt: The limits learnt for its model's scope, and when each ends.
    """
    configured = {quota.metric: quota for quota in deployment.quotas}
    for metric, quota in configured.items():
        limit, until = learnt.get(metric, (quota.limit, NEVER))
        yield (quota, limit, until) if limit < quota.limit else (quota, quota.limit, NEVER)
    for metric in Metric:
        if metric in learnt and metric not in configured:
            limit, until = learnt[metric]
            yield learnt_quota(metric, limit), limit, until
