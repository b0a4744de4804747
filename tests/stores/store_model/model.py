"""A naive model of what a store must decide: lists of takings, with every answer computed from scratch.

It shares no arithmetic with the stores. It is given what a store answered and checks it. Where a store may
round (large rolling quotas, the fractions of steady ones) the model allows a range.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.limits import LearntLimit, LimitRecord
from llm_router.domain.quota import Demand, Metric, Quota, Refill

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.stores.base import Decision, DeploymentSnapshot, Refusal
    from tests.stores.store_model.history import History, make_history, micros
else:
    from llm_router_tests_store_model.history import History, make_history, micros

__all__ = ["StoreModel"]

_LEARNT_FOR = 14 * 24 * 3_600_000_000
_STRIKES_KEPT = 25 * 3_600_000_000
_PROBE_TIME = 60.0


@attrs.define
class _Reservation:
    expires: int
    demand: Demand
    takings: list[tuple[History, Metric, int]]


@attrs.frozen
class _Term:
    """One quota of a deployment under the limit in force, when that changes, and what was learnt of it."""

    quota: Quota
    limit: int
    limit_expires: float
    history: History
    record: LimitRecord | None = None


class StoreModel:
    """Follows a store call by call. Every method raises AssertionError where the store is wrong."""

    def __init__(self) -> None:
        self._histories: dict[tuple[Scope, Metric, Refill], History] = {}
        self._reservations: dict[str, _Reservation] = {}
        self._cooldowns: dict[Scope, Cooldown] = {}
        self._learnt: defaultdict[Scope, list[tuple[int, LearntLimit]]] = defaultdict(list)
        self._lifts: int | None = None  # what the last decision said
        self._lifted: bool | None = False  # whether something was lifted since then; None for perhaps

    def reserve(
        self,
        reservation_id: str,
        candidates: Sequence[Deployment],
        demand: Demand,
        ttl: float,
        now: int,
        decision: Decision,
    ) -> None:
        """Check a decision, and take what the store took."""
        refused = candidates
        if decision.deployment is not None:
            refused = candidates[: candidates.index(decision.deployment)]
        assert [refusal.deployment for refusal in decision.refusals] == list(refused)
        for refusal in decision.refusals:
            self._check_refusal(refusal, demand, now)
        if decision.deployment is not None:
            self._check_grant(decision.deployment, demand, now)
            self._probe(decision, now)
            self._take(reservation_id, decision.deployment, demand, ttl, now)
            self._check_headroom(decision, now)
        self._check_lifts(decision)

    def settle(self, reservation_id: str, used: Demand, now: int) -> None:
        """Correct a reservation, unless it is unknown or has expired."""
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is None or now >= reservation.expires:
            return
        for history, metric, taking in reservation.takings:
            change = used.amount(metric) - reservation.demand.amount(metric)
            if change:
                history.correct(taking, change, now)

    def cool_down(self, cooldown: Cooldown, now: int) -> None:
        """Record a cooldown and the limits learnt with it."""
        scope = cooldown.scope
        present = self._cooldown([scope], now)
        if cooldown.until == -math.inf:
            self._note_lift(is_certain=present is not None)
            self._cooldowns.pop(scope, None)
        elif cooldown == Cooldown.retry(scope):
            waiting = present if present is not None and present.half_open else None
            self._note_lift(is_certain=waiting is not None)
            if waiting is not None:
                self._cooldowns[scope] = attrs.evolve(waiting, until=now / 1e6)
        elif _end(cooldown) > max(now, -math.inf if present is None else _end(present)):
            self._cooldowns[scope] = cooldown
        self._learnt[cooldown.scope] += [(now, entry) for entry in cooldown.learnt]

    def check_snapshot(self, snapshot: DeploymentSnapshot, now: int) -> None:
        """Check what a store reports about a deployment."""
        deployment = snapshot.deployment
        terms = list(self._terms(deployment, now))
        assert [quota.metric for quota in snapshot.quotas] == [term.quota.metric for term in terms]
        for reported, term in zip(snapshot.quotas, terms, strict=True):
            assert reported.limit == term.limit
            assert reported.learnt == term.record
            least, most = term.history.used_range(term.quota, term.limit, now)
            assert 0 <= least <= reported.used <= most, (reported, least, most)
            first, last = term.history.reset_range(term.quota, term.limit, now)
            assert first - 2 <= micros(reported.resets_at) <= last + 2, (reported, first, last)
        cooldown = self._cooldown(deployment.scopes, now)
        if cooldown is None or snapshot.cooldown is None:
            assert cooldown is snapshot.cooldown is None
        else:
            assert snapshot.cooldown.scope == cooldown.scope
            assert snapshot.cooldown.reason == cooldown.reason
            assert snapshot.cooldown.half_open == cooldown.half_open
            assert snapshot.cooldown.strikes == cooldown.strikes
            assert _end(snapshot.cooldown) == _end(cooldown)

    # --- checks ---------------------------------------------------------------------------------------

    def _check_grant(self, deployment: Deployment, demand: Demand, now: int) -> None:
        assert self._cooldown(deployment.scopes, now) is None, "granted during a cooldown"
        for term in self._terms(deployment, now):
            amount = demand.amount(term.quota.metric)
            if amount:
                assert term.history.may_fit(term.quota, term.limit, amount, now), ("granted beyond", term)

    def _probe(self, decision: Decision, now: int) -> None:
        """Check which half-open cooldowns a grant tries, and keep all other requests waiting for it."""
        assert decision.deployment is not None
        due = {}
        for scope in decision.deployment.scopes:
            present = self._cooldowns.get(scope)
            if (
                present is not None
                and present.half_open
                and _end(present) <= now < _end(present) + _STRIKES_KEPT
            ):
                due[scope] = present.strikes
                self._cooldowns[scope] = attrs.evolve(present, until=now / 1e6 + _PROBE_TIME)
        assert {probe.scope: probe.strikes for probe in decision.probes} == due
        assert len(decision.probes) == len(due)

    def _note_lift(self, *, is_certain: bool) -> None:
        if is_certain or not self._lifted:
            self._lifted = True if is_certain else None

    def _check_lifts(self, decision: Decision) -> None:
        if self._lifts is not None and self._lifted is not None:
            assert (decision.lifts != self._lifts) == self._lifted
        self._lifts, self._lifted = decision.lifts, False

    def _check_refusal(self, refusal: Refusal, demand: Demand, now: int) -> None:
        first, last, reasons = self._room_range(refusal.deployment, demand, now)
        assert last > now, ("refused what fits", refusal, demand)
        assert refusal.reason in reasons, (refusal, reasons)
        assert _within(refusal.retry_at, first, last), (refusal, first, last)
        first, last, _ = self._room_range(refusal.deployment, Demand(1, 1), now)
        assert _within(
            min(refusal.wake_at, refusal.retry_at), min(first, micros_or_inf(refusal.retry_at)), last
        )
        assert refusal.wake_at <= refusal.retry_at

    def _check_headroom(self, decision: Decision, now: int) -> None:
        assert decision.deployment is not None
        shares = {True: (1.0, 1.0), False: (1.0, 1.0)}
        for term in self._terms(decision.deployment, now):
            least, most = term.history.used_range(term.quota, term.limit, now)
            daily = term.quota.refill is Refill.DAILY
            low, high = (max(0.0, 1.0 - used / term.limit) if term.limit else 0.0 for used in (most, least))
            shares[daily] = min(shares[daily][0], low), min(shares[daily][1], high)
        for daily, reported in ((False, decision.headroom), (True, decision.daily_headroom)):
            assert shares[daily][0] - 1e-6 <= reported <= shares[daily][1] + 1e-6, (decision, shares)

    # --- what holds -----------------------------------------------------------------------------------

    def _take(
        self, reservation_id: str, deployment: Deployment, demand: Demand, ttl: float, now: int
    ) -> None:
        takings = []
        for term in self._terms(deployment, now):
            metric = term.quota.metric
            takings.append((term.history, metric, term.history.take(demand.amount(metric), now)))
            term.history.check_minute(term.quota, term.limit, now)
        self._reservations[reservation_id] = _Reservation(now + micros(ttl), demand, takings)

    def _room_range(self, deployment: Deployment, demand: Demand, now: int) -> tuple[float, float, set[str]]:
        """Return the earliest and latest time at which a store may say that ``demand`` fits, and why."""
        cooldown = self._cooldown(deployment.scopes, now)
        ranges = [(float(now), float(now), "")]
        if cooldown is not None:
            ranges.append((_end(cooldown), _end(cooldown), cooldown.reason))
        for term in self._terms(deployment, now):
            amount = demand.amount(term.quota.metric)
            if amount:
                first, last = term.history.room_range(term.quota, term.limit, amount, now)
                first, last = (min(moment, term.limit_expires) for moment in (first, last))
                ranges.append((first, last, term.quota.metric.value))
        latest = max(first for first, _, _ in ranges)
        reasons = {reason for _, last, reason in ranges if last >= latest and reason}
        return latest, max(last for _, last, _ in ranges), reasons

    def _cooldown(self, scopes: Sequence[Scope], now: int) -> Cooldown | None:
        present = [self._cooldowns[scope] for scope in scopes if scope in self._cooldowns]
        return max((each for each in present if _end(each) > now), key=_end, default=None)

    def _terms(self, deployment: Deployment, now: int) -> Iterator[_Term]:
        learnt = self._learnt_limits(deployment.model_scope, now)
        for quota in deployment.quotas:
            record = learnt.pop(quota.metric, None)
            limit, until = (quota.limit, math.inf) if record is None else _in_force(record, now)
            if limit >= quota.limit and not quota.adaptive:
                limit, until = quota.limit, math.inf
            yield _Term(quota, limit, until, self._history_of(deployment, quota), record)
        for metric in Metric:
            if metric in learnt:
                limit, until = _in_force(learnt[metric], now)
                refill = Refill.DAILY if metric.is_daily else Refill.ROLLING
                quota = Quota(metric, limit, refill)
                yield _Term(quota, limit, until, self._history_of(deployment, quota), learnt[metric])

    def _history_of(self, deployment: Deployment, quota: Quota) -> History:
        name = deployment.model_scope, quota.metric, quota.refill
        if name not in self._histories:
            self._histories[name] = make_history(quota)
        self._histories[name].see(quota)
        return self._histories[name]

    def _learnt_limits(self, scope: Scope, now: int) -> dict[Metric, LimitRecord]:
        """Go through every limit ever learnt for a scope: the last one that was obeyed stays for its time."""
        records: dict[Metric, LimitRecord] = {}
        for moment, entry in self._learnt[scope]:
            present = records.get(entry.metric)
            if present is not None and moment >= micros(present.learnt_at) + _LEARNT_FOR:
                present = records.pop(entry.metric)
                present = None
            if entry.replaces not in (None, 0.0 if present is None else present.learnt_at):
                continue
            records.pop(entry.metric, None)
            if entry.limit is not None:
                learnt_at = moment if present is None else max(moment, micros(present.learnt_at) + 1)
                records[entry.metric] = LimitRecord(
                    entry.limit,
                    entry.source,
                    learnt_at / 1e6,
                    entry.limit if entry.raised is None else entry.raised,
                    (moment + micros(entry.raise_after)) / 1e6 if entry.raise_after < math.inf else math.inf,
                )
        return {
            metric: record
            for metric, record in records.items()
            if micros(record.learnt_at) + _LEARNT_FOR > now
        }


def _in_force(record: LimitRecord, now: int) -> tuple[int, float]:
    """Return the limit at a time, and when another one takes its place."""
    forgotten, rises = float(micros(record.learnt_at) + _LEARNT_FOR), micros_or_inf(record.raise_at)
    return (record.raised, forgotten) if now >= rises else (record.limit, min(rises, forgotten))


def _end(cooldown: Cooldown) -> float:
    return micros_or_inf(cooldown.until)


def micros_or_inf(moment: float) -> float:
    """Convert seconds to microseconds, infinity to itself."""
    return moment if math.isinf(moment) else float(micros(moment))


def _within(moment: float, first: float, last: float) -> bool:
    """Return whether a time in seconds lies in a range in microseconds, give or take the rounding."""
    return first - 2 <= micros_or_inf(moment) <= last + 2
