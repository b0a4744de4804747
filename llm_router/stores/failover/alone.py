"""The quotas of a process that must do without the store, or that cannot trust its count yet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter

import attrs

from llm_router.domain.calendar import NEVER, microseconds, midnights, seconds
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.stores.base import Decision, DeploymentSnapshot, Refusal, Taking
from llm_router.stores.failover.peers import Part
from llm_router.stores.failover.records import Record, takings
from llm_router.stores.failover.rooms import Room, Rooms
from llm_router.stores.failover.takings import OwnTakings
from llm_router.stores.failover.times import STEP, Times
from llm_router.stores.ledger import StoredLimit, terms_in_force
from llm_router.stores.memory import MemoryStore

__all__ = ["LOCAL_SHARE", "Alone"]

LOCAL_SHARE = 0.25
"""The share of every quota that a process takes alone if it does not know how many share the store."""

_ASK_AGAIN = 10.0
"""Seconds after which something is worth asking for again that is more than the part of this process."""

_NOTHING = Demand(0, 0)
_SOURCE = "own"
_JUST_BEFORE = 1.0
_ROUNDING = 1e-6


@attrs.frozen
class _Share:
    """A deployment, its quotas under the limits in force, and a share of them.

    Which depends on what was learnt, and is so from ``since`` until ``until``.
    """

    deployment: Deployment
    quotas: tuple[Quota, ...]
    share: Deployment
    learnt: Mapping[Metric, StoredLimit] | None
    since: int
    until: int


class Alone:
    """A share of every quota, in memory, on top of what this process has taken already.

    It grants at most the share of each limit, learnt ones included, and at most the share of the room that
    the last reply of the store showed. What this process took itself counts against both.

    Its clock goes on steadily. When the machine's clock is set, :attr:`was_set` tells that its days are wrong
    from now on: another one takes its place, with what was taken.

    Args:
        part: What this process may take of every quota.
        own: What this process took. It must go on being told what is granted here.
        rooms: The room that refusals and snapshots of the store showed.
        times: The source of time.
        learnt: The limits learnt for each scope of a model. What a scope has is replaced when it changes.
        cooldowns: What cools down.
    """

    def __init__(
        self,
        part: Part,
        own: OwnTakings,
        rooms: Rooms,
        times: Times,
        learnt: Mapping[Scope, Mapping[Metric, StoredLimit]],
        cooldowns: Sequence[Cooldown],
    ) -> None:
        self._part = part
        self._own = own
        self._rooms = rooms
        self._times = times
        self._clock = times.fixed()
        self._learnt = learnt
        self._cooldowns = list(cooldowns)
        self._store = MemoryStore(clock=self._clock)
        self._shares: dict[str, _Share] = {}
        self._sequence = itertools.count(1)
        self._charged: set[Scope] = set()

    @property
    def was_set(self) -> bool:
        """Whether the machine's clock was set since this was made."""
        return abs(self._times.ahead() - self._clock.ahead) > STEP

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve from the shares; the decision names the deployments themselves."""
        await self._replay()
        shares = {await self._share_of(deployment): deployment for deployment in candidates}
        decision = await self._store.reserve(reservation_id, list(shares), demand, ttl)
        decision.refusals = tuple(self._described(r, shares[r.deployment], demand) for r in decision.refusals)
        if decision.deployment is not None:
            decision.deployment = shares[decision.deployment]
        return decision

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Settle a reservation; one that was not made here is ignored."""
        await self._store.settle(reservation_id, used)

    async def add(self, deployment: Deployment, used: Demand, at: float) -> None:
        """Count what was taken at a steady time, and not reserved here.

        What nothing was asked of yet is counted when it is, with all that this process took.
        """
        if deployment.model_scope in self._charged and used != _NOTHING:
            share, taking = await self._share_of(deployment), Taking(at + self._clock.ahead, used)
            await self._store.charge(_SOURCE, next(self._sequence), share, [taking])

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down. What is learnt is looked up elsewhere, since here it is cut to the share."""
        await self._replay()
        await self._store.cool_down(attrs.evolve(cooldown, learnt=()))
        self._shares.clear()

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of the shares, with what was learnt of the limits that they are shares of."""
        await self._replay()
        shares = await self._store.snapshot([await self._share_of(deployment) for deployment in deployments])
        return [self._shown(s, d) for s, d in zip(shares, deployments, strict=True)]

    def _described(self, refusal: Refusal, deployment: Deployment, demand: Demand) -> Refusal:
        """Return a refusal of the deployment itself: what exceeds the part alone is not refused for ever."""
        if refusal.retry_at == math.inf and refusal.cooldown is None:
            quotas = self._shares[deployment.id].quotas
            if all(demand.amount(quota.metric) <= quota.limit for quota in quotas):
                later = self._clock.time() + _ASK_AGAIN
                wake_at = min(refusal.wake_at, later)
                return attrs.evolve(refusal, deployment=deployment, retry_at=later, wake_at=wake_at)
        return attrs.evolve(refusal, deployment=deployment)

    def _shown(self, share: DeploymentSnapshot, deployment: Deployment) -> DeploymentSnapshot:
        learnt = self._limits_of(deployment, microseconds(self._clock.time()))
        quotas = (
            attrs.evolve(quota, learnt=learnt[quota.metric].record()) if quota.metric in learnt else quota
            for quota in share.quotas
        )
        return attrs.evolve(share, deployment=deployment, quotas=tuple(quotas))

    async def _replay(self) -> None:
        while self._cooldowns:
            await self._store.cool_down(attrs.evolve(self._cooldowns.pop(0), learnt=()))

    async def _share_of(self, deployment: Deployment) -> Deployment:
        """Return the deployment with its share of every limit in force; charge what was taken from it."""
        known, scope = self._shares.get(deployment.id), deployment.model_scope
        now, learnt = microseconds(self._clock.time()), self._learnt.get(scope)
        if (
            known is None
            or known.deployment is not deployment
            or known.learnt is not learnt
            or not known.since <= now < known.until
        ):
            quotas, until = self._in_force(deployment, now)
            share = attrs.evolve(deployment, quotas=tuple(self._part.of(quota, scope) for quota in quotas))
            known = _Share(deployment, tuple(quotas), share, learnt, now, until)
            self._shares[deployment.id] = known
        if scope not in self._charged:
            self._charged.add(scope)
            await self._charge(known)
        return known.share

    def _limits_of(self, deployment: Deployment, now: int) -> dict[Metric, StoredLimit]:
        learnt = self._learnt.get(deployment.model_scope, {})
        return {metric: entry for metric, entry in learnt.items() if entry.until > now}

    def _in_force(self, deployment: Deployment, now: int) -> tuple[list[Quota], int]:
        """Return the quotas of a deployment under the limits now in force, and until when they are."""
        learnt = self._limits_of(deployment, now)
        quotas = [_under(quota, limit) for quota, limit, _ in terms_in_force(deployment, learnt, now)]
        return quotas, min((entry.in_force(now)[1] for entry in learnt.values()), default=NEVER)

    async def _charge(self, known: _Share) -> None:
        """Count what this process took before, and what others took as far as it knows."""
        scope = known.deployment.model_scope
        record, ahead = self._own.get(scope), self._clock.ahead
        own = [] if record is None else takings(record.held(), ahead)
        others = list[Taking]()
        longest = max((quota.window + quota.guard for quota in known.share.quotas), default=0.0)
        pairs = zip(known.quotas, known.share.quotas, strict=True)
        for quota, share in sorted(pairs, key=lambda pair: pair[0].refill is Refill.DAILY):
            shown_at, headroom = _headroom(quota, record, self._rooms.get(quota.metric, scope))
            if shown_at == -math.inf:
                continue
            at = min(shown_at + ahead, self._clock.time())
            began = _began(quota, at)
            # Of the room that the store showed last, this process takes its share: what is left of its share
            # of the limit beyond that counts as taken.
            counted = sum(each.used.amount(quota.metric) for each in own + others if began < each.at <= at)
            rest = math.ceil(share.limit * (1.0 - headroom) - _ROUNDING) - counted
            if rest > 0:
                if quota.refill is Refill.DAILY:  # only of the day: just before the windows
                    at = max(began + _ROUNDING, at - longest - _JUST_BEFORE)
                others.append(Taking(at, Demand(0, rest) if quota.metric.counts_tokens else Demand(rest, 0)))
        charges = sorted(own + others, key=attrgetter("at"))
        await self._store.charge(_SOURCE, next(self._sequence), known.share, charges)


def _headroom(quota: Quota, record: Record | None, room: Room | None) -> tuple[float, float]:
    """Return when the store showed last what was left of a quota, and which share of it that was."""
    if room is not None and (record is None or room.at >= record.told_at):
        return room.at, min(room.left / max(quota.limit, 1), 1.0)
    if record is None:
        return -math.inf, 1.0
    is_daily = quota.refill is Refill.DAILY
    return record.told_at, record.daily_headroom if is_daily else record.headroom


def _began(quota: Quota, at: float) -> float:
    """Return since when a taking counted at a time, in seconds since the epoch."""
    if quota.refill is Refill.DAILY:
        return seconds(midnights(microseconds(at), quota.timezone)[0])
    return at - quota.window - quota.guard


def _under(quota: Quota, limit: int) -> Quota:
    if limit == quota.limit:
        return quota
    burst = None if quota.burst is None else max(1, min(quota.burst, limit))
    return attrs.evolve(quota, limit=limit, burst=burst)
