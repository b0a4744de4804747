"""Reserving while a store is in trouble, or cannot be trusted yet to know what others took."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import MAX_LIMIT, Demand
from llm_router.errors import StoreError, StoreUnavailableError
from llm_router.stores.base import RECOUNT, Decision, RateLimitStore, Refusal
from llm_router.stores.failover.alone import Alone
from llm_router.stores.failover.books import Books
from llm_router.stores.failover.losses import Losses, tells_of_loss
from llm_router.stores.failover.outages import Outages, StoreFailurePolicy
from llm_router.stores.failover.records import cautious_for
from llm_router.stores.failover.shards import Shard, Shards

__all__ = ["CarefulReserve"]

_TURNS = 4
"""Times that a reserve is made again because the store had lost something, or failed."""

_NOTHING, _TOO_MUCH = Demand(0, 0), Demand(MAX_LIMIT, MAX_LIMIT)
"""What always fits, and what fits nothing that has a limit."""


class CarefulReserve:
    """Reserves from a store of which a shard is in trouble, or has lost something, or was just in trouble.

    Args:
        store: The store.
        policy: What this process does while it fails.
        shards: Its shards.
        books: What this process knows of it.
        outages: Decides which shards this process does without.
        losses: Notices what it has lost.
        release: Gives a reservation of the store back.
        pass_on: Lets another request probe half-open cooldowns.
    """

    def __init__(
        self,
        store: RateLimitStore,
        policy: StoreFailurePolicy,
        shards: Shards,
        books: Books,
        outages: Outages,
        losses: Losses,
        release: Callable[[str], Awaitable[None]],
        pass_on: Callable[[Iterable[Cooldown]], None],
    ) -> None:
        self._store = store
        self._policy = policy
        self._shards = shards
        self._books = books
        self._outages = outages
        self._losses = losses
        self._release = release
        self._pass_on = pass_on

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve shard by shard, each as it is: in trouble, not to be trusted yet, or well.

        Raises:
            StoreError: A shard is overloaded, fails where the policy is to refuse, or works but for this.
        """
        refusals: tuple[Refusal, ...] = ()
        decision = Decision(None, 0.0, 0.0)
        for shard, run in self._shards.runs(candidates):
            decision = await self._reserve_in(shard, reservation_id, run, demand, ttl)
            refusals += decision.refusals
            if decision.deployment is not None:
                break
        decision.refusals = refusals
        return decision

    async def heed_loss(self, decision: Decision, candidates: Sequence[Deployment]) -> None:
        """Do what a reply calls for that tells of a loss; what it granted is passed on if that is cut short.

        Raises:
            StoreError: The store failed.
        """
        try:
            await self._losses.heed(decision, candidates)
        except asyncio.CancelledError:
            self._pass_on(decision.probes)
            raise

    async def unless_lost(self, reservation_id: str, decision: Decision) -> Decision:
        """Return a decision; under ``closed`` give back what a store granted that has just lost something."""
        deployment = decision.deployment
        if deployment is None or not self._shards.careful:
            return decision
        barred = self._barred(self._shards.of(deployment), [deployment])
        if not barred:
            return decision
        self._pass_on(decision.probes)
        await self._release(reservation_id)
        refusals = (*decision.refusals, *barred.values())
        return attrs.evolve(decision, deployment=None, refusals=refusals, probes=())

    async def note_grant(
        self,
        reservation_id: str,
        decision: Decision,
        demand: Demand,
        ttl: float,
        began: float,
        *,
        shows_room: bool,
        alone: Alone | None = None,
    ) -> None:
        """Note what the store granted, as of the middle of the call: it may lose what it counted later.

        Args:
            reservation_id: The name of the reservation.
            decision: The grant.
            demand: What was reserved.
            ttl: For how many seconds.
            began: When the call began, as a steady time.
            shows_room: Whether the store can be trusted to know what others took.
            alone: Where it was reserved as well, or None. Another one may have taken its place meanwhile.
        """
        books = self._books
        now = books.times.now()
        if self._shards.careful:  # perhaps only since the call began
            deployment = decision.deployment
            assert deployment is not None  # noqa: S101 - a grant names it
            present = self._shards.of(deployment).alone
            if present is not None and present is not alone:
                await present.add(deployment, demand, now)
        at = (began + now) / 2
        books.own.note_grant(
            reservation_id, decision, demand, ttl, at, in_store=True, shows_room=shows_room, alone=alone
        )

    def refusal(self, shard: Shard) -> StoreUnavailableError:
        """Return the error by which ``closed`` refuses while a shard is in trouble."""
        return StoreUnavailableError(f"{shard.trouble}; on_store_failure='closed' refuses until it answers")

    async def _reserve_in(
        self, shard: Shard, reservation_id: str, candidates: list[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        decision = Decision(None, 0.0, 0.0)
        failure: StoreError | None = None
        for _ in range(_TURNS):
            self._outages.probe_if_due(shard)
            if shard.trouble is not None:
                return await self._reserve_alone(shard, reservation_id, candidates, demand, ttl)
            began, alone = self._books.times.now(), None
            try:
                if self._is_cautious(shard, candidates):
                    alone = self._books.alone(shard)
                    decision = await self._reserve_cautiously(
                        shard, alone, reservation_id, candidates, demand, ttl
                    )
                else:
                    decision = await self._store.reserve(reservation_id, candidates, demand, ttl)
                    self._books.rooms.note_refusals(decision.refusals, demand)
                if decision.deployment is not None:
                    # What others took and have not told yet is not in the room that it shows.
                    shows_room = shard.is_plain and not tells_of_loss(decision, shard)
                    await self.note_grant(
                        reservation_id, decision, demand, ttl, began, shows_room=shows_room, alone=alone
                    )
                if decision.lost or decision.reset_at:
                    await self.heed_loss(decision, candidates)
            except StoreError as error:
                if decision.deployment is not None:  # it stands, and the next call notices the loss again
                    break
                await self._outages.fail(error, candidates)
                failure = error
                continue
            failure = None
            if decision.deployment is not None or not decision.lost:
                break
        if failure is not None and decision.deployment is None:
            raise failure  # the store works, but for this command
        return await self.unless_lost(reservation_id, decision)

    async def _reserve_alone(
        self, shard: Shard, reservation_id: str, candidates: list[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve without the store, as the policy says."""
        if self._policy == "closed":
            raise self.refusal(shard)
        books, alone = self._books, None
        if self._policy == "open":
            decision = Decision(candidates[0])
        else:
            alone = books.alone(shard)
            decision = await alone.reserve(reservation_id, candidates, demand, ttl)
        if decision.deployment is not None:
            now = books.times.now()
            books.own.note_grant(reservation_id, decision, demand, ttl, now, in_store=False, alone=alone)
        return decision

    async def _reserve_cautiously(
        self,
        shard: Shard,
        alone: Alone,
        reservation_id: str,
        candidates: list[Deployment],
        demand: Demand,
        ttl: float,
    ) -> Decision:
        """Reserve from this process's share first, and then in the store."""
        if barred := self._barred(shard, candidates):
            candidates = [each for each in candidates if each not in barred]
            if not candidates:
                decision = await self._look(reservation_id, list(barred.values()), ttl)
                return attrs.evolve(decision, refusals=tuple(barred.values()))
        refusals = tuple(barred.values())
        lost: tuple[Deployment, ...] = ()
        decision = Decision(None, 0.0, 0.0)
        left = candidates
        while left:
            granted = await alone.reserve(reservation_id, left, demand, ttl)
            refusals += granted.refusals
            if granted.deployment is None:
                if left is candidates:  # the store was not asked
                    decision = await self._look(reservation_id, granted.refusals, ttl)
                    lost = decision.lost
                break
            try:
                decision = await self._store.reserve(reservation_id, [granted.deployment], demand, ttl)
            except BaseException:
                await alone.settle(reservation_id, _NOTHING)
                raise
            self._books.rooms.note_refusals(decision.refusals, demand)
            if decision.deployment is not None:
                break
            await alone.settle(reservation_id, _NOTHING)
            refusals += decision.refusals
            lost += decision.lost
            left = left[left.index(granted.deployment) + 1 :]
        return attrs.evolve(decision, refusals=refusals, lost=lost)

    async def _look(self, reservation_id: str, refusals: Sequence[Refusal], ttl: float) -> Decision:
        """Return what the store has lost again, and take nothing: a process must charge that in any case."""
        limited = [each.deployment for each in refusals if each.deployment.quotas or each.cooldown is None]
        if not limited:
            return Decision(None, 0.0, 0.0)
        decision = await self._store.reserve(reservation_id, limited, _TOO_MUCH, ttl)
        if decision.deployment is not None:  # the store knows no limit of it
            self._pass_on(decision.probes)
            await self._store.release(reservation_id)
        return attrs.evolve(decision, deployment=None, probes=())

    def _is_cautious(self, shard: Shard, candidates: Sequence[Deployment]) -> bool:
        """Whether others may not have told the shard yet what they took in the present window."""
        is_cautious = shard.is_cautious(self._books.times.now(), max(map(cautious_for, candidates)))
        if not is_cautious:
            self._shards.careful = not all(each.is_plain for each in self._shards)
        return is_cautious

    def _barred(self, shard: Shard, candidates: Iterable[Deployment]) -> dict[Deployment, Refusal]:
        """Return what ``closed`` refuses: what was taken of it in the present window is not known."""
        if self._policy != "closed" or shard.lost_at == -math.inf:
            return {}
        now, ahead, learnt = self._books.times.now(), self._books.times.ahead(), self._books.limits.learnt
        barred = {}
        for each in candidates:
            until = shard.lost_at + cautious_for(each)
            if now < until and (each.quotas or each.model_scope in learnt):
                barred[each] = Refusal(each, RECOUNT, until + ahead, until + ahead)
        return barred
