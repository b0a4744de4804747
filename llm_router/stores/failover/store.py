"""The store that stands in front of another one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Literal

import attrs

from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import MAX_LIMIT, MINUTE, Demand
from llm_router.errors import (
    ConfigError,
    StoreCorruptError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from llm_router.stores.base import (
    RECOUNT,
    Decision,
    DeploymentSnapshot,
    ExternalStore,
    RateLimitStore,
    Refusal,
    Sharded,
    Taking,
)
from llm_router.stores.failover.alone import LOCAL_SHARE, Alone
from llm_router.stores.failover.cooldowns import KnownCooldowns, UntoldCooldowns
from llm_router.stores.failover.limits import KnownLimits
from llm_router.stores.failover.peers import LocalShare, Peers
from llm_router.stores.failover.rooms import Rooms
from llm_router.stores.failover.shards import Shard
from llm_router.stores.failover.takings import OpenReservation, OwnTakings, Record, cautious_for
from llm_router.stores.failover.telling import Teller
from llm_router.stores.failover.times import Times

__all__ = ["FailoverStore", "StoreFailurePolicy"]

_log = logging.getLogger("llm_router")

StoreFailurePolicy = Literal["closed", "local", "open"]
"""What to do while the store fails: refuse, continue with a share of every quota, or without limits."""

_CALLS = 2
"""Times that a call without an answer is made: a connection may have been lost that is there again."""

_TURNS = 4
"""Times that a reserve is made again because the store had lost something, or failed."""

_NOTHING, _TOO_MUCH = Demand(0, 0), Demand(MAX_LIMIT, MAX_LIMIT)
"""What always fits, and what fits nothing that has a limit."""


class FailoverStore:
    """Stands in front of a store: takes over when it fails, and remembers what this process took.

    If the store behind it does not answer, the policy decides: ``closed`` raises, ``open`` grants everything,
    ``local`` continues with a share of every quota, of this process alone. While this process is on its own,
    it tries the store again after 1 s, 2 s, 4 s, … up to every 30 s, in the background, so that no caller
    waits for it. When the store answers, it is told what was spent and which cooldowns began meanwhile. Each
    change of state is logged once. Of a divided store, each shard fails and returns by itself.

    With ``"auto"`` each process takes whole requests or tokens, all of them together at most the limit. Where
    there are fewer than processes, only some have one, for each model others (see :class:`Ranking`). Of a
    share that you choose yourself, less than one request per window becomes one in a longer window.

    This process keeps a ledger of what it took itself in every window and day that still counts. On its own
    it takes at most its share of each limit, and of the room that the store showed last; what it spent
    before counts against both. If the store has lost something (see :class:`ExternalStore`), the process
    charges its takings again, before anything more is granted.

    For one window after the store has lost something, or has answered again, the process takes no more than
    its share through the store as well: others may not have charged theirs yet. With ``closed`` it takes
    nothing for one window after the store has lost something, so that no window sees more than the limit,
    whichever processes are gone, idle or cut off. Of a day, what those have taken is not known.

    A call that times out while the store answers another one is no failure of the store but overload: the
    :class:`StoreTimeoutError` is passed on, and the caller should try again later.

    Args:
        store: The store behind it.
        policy: What to do while the store fails.
        local_share: The share of every quota for ``local``, above 0 and at most 1. ``"auto"``: one over the
            number of processes that announced themselves to the store within a minute.
        first_share: What takes the place of ``"auto"`` while the store has not said within a minute how many
            they are, unless the last number makes it less.
        owns_store: Whether closing this store closes the store behind it.
        clock: The source of time; the machine's clock by default.

    Raises:
        ConfigError: There is no such policy or share.
    """

    def __init__(
        self,
        store: RateLimitStore,
        *,
        policy: StoreFailurePolicy = "local",
        local_share: LocalShare = "auto",
        first_share: float = LOCAL_SHARE,
        owns_store: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if policy not in ("closed", "local", "open"):
            raise ConfigError(f"on_store_failure must be 'closed', 'local' or 'open', not {policy!r}")
        if local_share != "auto" and (not isinstance(local_share, int | float) or not 0 < local_share <= 1):
            raise ConfigError(f"local_share must be 'auto' or above 0 and at most 1, not {local_share!r}")
        self.behind = store
        """The store behind it."""
        self._sharded = store if isinstance(store, Sharded) else None
        self._policy = policy
        self._owns_store = owns_store
        clock = clock or SystemClock()
        self._times = Times(clock)
        self._own = OwnTakings(store.known if isinstance(store, ExternalStore) else {}, self._times)
        self._peers = Peers(store, local_share, first_share, clock)
        self._teller = Teller(store, self._own, self._peers, self._times)
        self._shards: dict[int, Shard] = {}
        self._careful = False  # whether any shard is in trouble, or not to be trusted yet
        self._rooms = Rooms(self._times)
        self._cooldowns = KnownCooldowns(self._times)
        self._limits = KnownLimits()
        self._untold = UntoldCooldowns(self._times)
        self._unsettled: dict[str, tuple[OpenReservation, Demand]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: list[Callable[[str | None], None]] = []

    # --- the store ------------------------------------------------------------------------------------

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve in the store, or as the policy says; see :class:`RateLimitStore`."""
        now, own = self._times.now(), self._own
        if not own.seen <= now < own.due:
            self._heed(now, candidates)
        if self._careful:
            return await self._reserve_carefully(reservation_id, candidates, demand, ttl)
        try:
            decision = await self.behind.reserve(reservation_id, candidates, demand, ttl)
        except StoreError as error:
            await self._fail(error, candidates)
            return await self._reserve_carefully(reservation_id, candidates, demand, ttl)
        if decision.refusals:
            self._rooms.note_refusals(decision.refusals, demand)
        if decision.deployment is not None:
            shows_room = not _tells_of_loss(decision, self._shard(decision.deployment))
            self._note_grant(reservation_id, decision, demand, ttl, now, shows_room=shows_room)
        if decision.lost or decision.reset_at:
            try:
                await self._heed_loss(decision, candidates)
            except StoreError as error:
                if decision.deployment is None:
                    await self._fail(error, candidates)
                # What was granted stands, and the next call notices the loss again.
            if decision.deployment is None and decision.lost:
                return await self._reserve_carefully(reservation_id, candidates, demand, ttl)
            return await self._unless_lost(reservation_id, decision)
        return decision

    def _heed(self, now: float, wanted: Iterable[Deployment] = ()) -> None:
        """Do what is due: on any call, though at most about once a second."""
        self._own.heed(now)
        if self._peers.is_due(now):
            self._start(self._announce())
            self._start(self._look_around(wanted))

    def _note_grant(
        self,
        reservation_id: str,
        decision: Decision,
        demand: Demand,
        ttl: float,
        began: float,
        *,
        shows_room: bool,
    ) -> None:
        """Note what the store granted, as of the middle of the call: it may lose what it counted later."""
        at = (began + self._times.now()) / 2
        self._own.note_grant(reservation_id, decision, demand, ttl, at, in_store=True, shows_room=shows_room)

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Settle where the reservation was made; see :class:`RateLimitStore`."""
        now, own = self._times.now(), self._own
        made = own.close(reservation_id, used)
        if not own.seen <= now < own.due:
            self._heed(now)
        if not self._careful and (made is None or made.in_store):
            try:
                return await self.behind.settle(reservation_id, used)
            except StoreError:  # a second look decides
                pass
        return await self._settle_carefully(reservation_id, used, made)

    async def _settle_carefully(
        self, reservation_id: str, used: Demand, made: OpenReservation | None
    ) -> None:
        """Settle wherever the reservation may be, and remember it if that is not possible yet."""
        for shard in self._shards.values():
            if shard.alone is not None:
                await shard.alone.settle(reservation_id, used)
        if made is None:
            await self._pass_on(lambda: self.behind.settle(reservation_id, used), None)
            return
        deployment = made.record.deployment
        if made.in_store:
            failure = await self._pass_on(lambda: self.behind.settle(reservation_id, used), deployment)
            if failure is not None:
                self._unsettled[reservation_id] = made, used
        elif made.record.is_missing():
            await self._pass_on(lambda: self._teller.charge(made.record), deployment)

    async def release(self, reservation_id: str) -> None:
        """Release where the reservation was made; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, _NOTHING)

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        """Charge in the store behind it; see :class:`RateLimitStore`."""
        return await self.behind.charge(source, sequence, deployment, missing, counted, since)

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down, here and in the store; see :class:`RateLimitStore`.

        While this process is on its own, the store is told later. Of the limits learnt meanwhile, one that
        replaces a certain limit then counts unless another process has replaced that one.
        """
        self._heed(self._times.now())
        self._cooldowns.add(cooldown)
        later = attrs.evolve(cooldown, learnt=self._limits.learn(cooldown, self._times.wall()))
        for shard in self._shards.values():
            if shard.alone is not None:
                await shard.alone.cool_down(cooldown)
        if self.trouble is not None:
            self._untold.add(later)
            return
        failure = await self._pass_on(lambda: self.behind.cool_down(cooldown), None)
        if failure is None:
            self._limits.told(cooldown)
        else:
            self._untold.add(later)
            if self.trouble is None:
                raise failure

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state that is decisive now; see :class:`RateLimitStore`."""
        self._heed(self._times.now())
        if self.trouble is None:
            try:
                return await self._see(deployments)
            except StoreError as error:
                await self._fail(error, deployments)
        snapshots: list[DeploymentSnapshot] = []
        for shard, run in self._runs(deployments):
            self._probe_if_due(shard)
            if shard.trouble is None:
                snapshots += await self._see(run)
            elif self._policy == "closed":
                raise self._refusal(shard)
            else:
                snapshots += await self._alone(shard).snapshot(run)
        if not deployments:
            for shard in self._shards.values():
                self._probe_if_due(shard)
        return snapshots

    async def _see(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return what the store shows, and note its limits, unless this process learnt others meanwhile."""
        changes = self._limits.changes
        snapshots = await self.behind.snapshot(deployments)
        now = self._times.now()
        self._limits.looked_at(deployments, now)
        if not self._careful:  # else others may not have told the store yet what they took
            self._rooms.note_snapshots([each for each in snapshots if self._is_news(each, now)])
        if changes == self._limits.changes and not self._untold:
            self._limits.see(snapshots)
        return snapshots

    def _is_news(self, snapshot: DeploymentSnapshot, now: float) -> bool:
        """Whether no grant has shown the room lately, which says more: also whether something was lost."""
        record = self._own.get(snapshot.deployment.model_scope)
        return record is None or not now - MINUTE < record.told_at <= now

    async def aclose(self) -> None:
        """Release what this store holds open."""
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None] | asyncio.Task[bool] | None] = [*self._tasks]
        for shard in self._shards.values():
            tasks += shard.probe, shard.check
            shard.probe = shard.check = None
        mine = [task for task in tasks if task is not None and task.get_loop() is loop]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        if self._owns_store:
            await self.behind.aclose()

    def watch(self, watcher: Callable[[str | None], None]) -> Callable[[], None]:
        """Have ``watcher`` called whenever :attr:`trouble` begins or ends, with its new value.

        Return what ends that; it may be called twice. The watcher must not raise.
        """
        self._watchers.append(watcher)

        def stop() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return stop

    @property
    def trouble(self) -> str | None:
        """Why this process is on its own, at least in part; None while the store answers."""
        troubled = [shard for shard in self._shards.values() if shard.trouble is not None]
        if not troubled:
            return None
        trouble = troubled[0].trouble
        return trouble if self.shards == 1 else f"{trouble} ({len(troubled)} of {self.shards} shards)"

    @property
    def shards(self) -> int:
        """The number of shards of the store behind it; see :class:`Sharded`."""
        return 1 if self._sharded is None else self._sharded.shards

    def shard_of(self, deployment: Deployment) -> int:
        """Return the shard in the store behind it; see :class:`Sharded`."""
        return 0 if self._sharded is None else self._sharded.shard_of(deployment)

    def __repr__(self) -> str:
        state = "" if self.trouble is None else f", on its own ({self._policy})"
        return f"FailoverStore({self.behind!r}{state})"

    # --- reserving with care --------------------------------------------------------------------------

    async def _reserve_carefully(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve shard by shard, each as it is: in trouble, not to be trusted yet, or well."""
        refusals: tuple[Refusal, ...] = ()
        decision = Decision(None, 0.0, 0.0)
        for shard, run in self._runs(candidates):
            decision = await self._reserve_in(shard, reservation_id, run, demand, ttl)
            refusals += decision.refusals
            if decision.deployment is not None:
                break
        decision.refusals = refusals
        return decision

    async def _reserve_in(
        self, shard: Shard, reservation_id: str, candidates: list[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        decision = Decision(None, 0.0, 0.0)
        for _ in range(_TURNS):
            self._probe_if_due(shard)
            if shard.trouble is not None:
                return await self._reserve_alone(shard, reservation_id, candidates, demand, ttl)
            began = self._times.now()
            try:
                if self._is_cautious(shard, candidates):
                    decision = await self._reserve_cautiously(shard, reservation_id, candidates, demand, ttl)
                else:
                    decision = await self.behind.reserve(reservation_id, candidates, demand, ttl)
                    self._rooms.note_refusals(decision.refusals, demand)
                if decision.deployment is not None:
                    # What others took and have not told yet is not in the room that it shows.
                    shows_room = shard.is_plain and not _tells_of_loss(decision, shard)
                    self._note_grant(reservation_id, decision, demand, ttl, began, shows_room=shows_room)
                if decision.lost or decision.reset_at:
                    await self._heed_loss(decision, candidates)
            except StoreError as error:
                if decision.deployment is not None:  # it stands, and the next call notices the loss again
                    break
                await self._fail(error, candidates)
                continue
            if decision.deployment is not None or not decision.lost:
                break
        return await self._unless_lost(reservation_id, decision)

    async def _reserve_alone(
        self, shard: Shard, reservation_id: str, candidates: list[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        if self._policy == "closed":
            raise self._refusal(shard)
        if self._policy == "open":
            decision = Decision(candidates[0])
        else:
            decision = await self._alone(shard).reserve(reservation_id, candidates, demand, ttl)
        if decision.deployment is not None:
            self._own.note_grant(reservation_id, decision, demand, ttl, self._times.now(), in_store=False)
        return decision

    async def _reserve_cautiously(
        self, shard: Shard, reservation_id: str, candidates: list[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve from this process's share first, and then in the store."""
        if barred := self._barred(shard, candidates):
            candidates = [each for each in candidates if each not in barred]
            if not candidates:
                decision = await self._look(reservation_id, list(barred.values()), ttl)
                return attrs.evolve(decision, refusals=tuple(barred.values()))
        alone = self._alone(shard)
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
                decision = await self.behind.reserve(reservation_id, [granted.deployment], demand, ttl)
            except BaseException:
                await alone.settle(reservation_id, _NOTHING)
                raise
            self._rooms.note_refusals(decision.refusals, demand)
            if decision.deployment is not None:
                break
            await alone.settle(reservation_id, _NOTHING)
            refusals += decision.refusals
            lost += decision.lost
            left = left[left.index(granted.deployment) + 1 :]
        return attrs.evolve(decision, refusals=refusals, lost=lost)

    def _barred(self, shard: Shard, candidates: Iterable[Deployment]) -> dict[Deployment, Refusal]:
        """Return what ``closed`` refuses: what was taken of it in the present window is not known."""
        if self._policy != "closed" or shard.lost_at == -math.inf:
            return {}
        barred, now, ahead = {}, self._times.now(), self._times.ahead()
        for each in candidates:
            until = shard.lost_at + cautious_for(each)
            if now < until and (each.quotas or each.model_scope in self._limits.learnt):
                barred[each] = Refusal(each, RECOUNT, until + ahead, until + ahead)
        return barred

    async def _unless_lost(self, reservation_id: str, decision: Decision) -> Decision:
        """Return a decision; under ``closed`` give back what a store granted that has just lost something."""
        deployment = decision.deployment
        if deployment is None or not self._careful:
            return decision
        barred = self._barred(self._shard(deployment), [deployment])
        if not barred:
            return decision
        await self.release(reservation_id)
        return attrs.evolve(
            decision, deployment=None, refusals=(*decision.refusals, *barred.values()), probes=()
        )

    async def _look(self, reservation_id: str, refusals: Sequence[Refusal], ttl: float) -> Decision:
        """Return what the store has lost again, and take nothing: a process must charge that in any case."""
        limited = [each.deployment for each in refusals if each.deployment.quotas or each.cooldown is None]
        if not limited:
            return Decision(None, 0.0, 0.0)
        decision = await self.behind.reserve(reservation_id, limited, _TOO_MUCH, ttl)
        if decision.deployment is not None:  # the store knows no limit of it
            await self.behind.release(reservation_id)
        return attrs.evolve(decision, deployment=None, probes=())

    def _is_cautious(self, shard: Shard, candidates: Sequence[Deployment]) -> bool:
        """Whether others may not have told the shard yet what they took in the present window."""
        is_cautious = shard.is_cautious(self._times.now(), max(map(cautious_for, candidates)))
        if not is_cautious:
            self._careful = not all(each.is_plain for each in self._shards.values())
        return is_cautious

    def _trust_no_more(self, shard: Shard, since: float) -> None:
        """Be cautious for a window: others may not have told the shard yet what they took."""
        shard.be_cautious(since, self._times.now(), self._own.longest_window)
        self._careful = True

    def _alone(self, shard: Shard) -> Alone:
        if shard.alone is None or shard.alone.was_set:
            self._limits.forget(self._times.wall())
            cooldowns, learnt = self._cooldowns.in_force(), self._limits.learnt
            shard.alone = Alone(self._peers.part, self._own, self._rooms, self._times, learnt, cooldowns)
        return shard.alone

    def _runs(self, deployments: Sequence[Deployment]) -> Iterator[tuple[Shard, list[Deployment]]]:
        """Yield each run of deployments in the same shard, and the shard."""
        for _, run in groupby(deployments, self.shard_of):
            together = list(run)
            yield self._shard(together[0]), together

    def _shard(self, sample: Deployment) -> Shard:
        number = self.shard_of(sample)
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = Shard(number, sample)
        return shard

    def _refusal(self, shard: Shard) -> StoreUnavailableError:
        return StoreUnavailableError(f"{shard.trouble}; on_store_failure='closed' refuses until it answers")

    # --- what the store has lost ----------------------------------------------------------------------

    async def _heed_loss(self, decision: Decision, candidates: Sequence[Deployment]) -> None:
        """Charge again what the store lost, and be cautious for a window if that was more than a record."""
        shard = self._shard(decision.deployment or candidates[0])
        if decision.reset_at != shard.reset_at:
            shard.reset_at = decision.reset_at
            if decision.reset_at:
                shard.lost_at = self._lost_at(shard, decision.reset_at)
                self._trust_no_more(shard, shard.lost_at)
                self._peers.names_were_lost(shard.lost_at)
                shard.alone = None  # with what was taken up to now
                self._start(self._charge_all(shard))
        for deployment in decision.lost:
            record = self._own.get(deployment.model_scope)
            if record is None:
                self._own.known.pop(deployment.model_scope, None)
            else:
                await self._teller.charge(record)

    def _lost_at(self, shard: Shard, reset_at: float) -> float:
        """Return the steady time of a loss: not before the last grant of the shard, which knew of none.

        A clock that was set since then would make it as old as it was moved.
        """
        told_at = [each.told_at for each in self._own if self.shard_of(each.deployment) == shard.number]
        return min(max(self._times.steady(reset_at), *told_at, -math.inf), self._times.now())

    async def _charge_all(self, shard: Shard) -> None:
        """Charge what this process took from every deployment of a shard that has lost something."""
        for record in self._own:
            if self.shard_of(record.deployment) == shard.number and shard.trouble is None:
                with suppress(StoreError):  # it is charged when it is asked for, or when the store answers
                    await self._teller.charge(record)

    async def _announce(self) -> None:
        """Announce this process, and do what calls left undone that failed though the store answers."""
        with suppress(StoreError):
            await self._peers.announce()
            await self._peers.warn_once()
            if not self._careful:
                await self._settle_what_is_left()
                await self._tell_cooldowns()

    async def _look_around(self, wanted: Iterable[Deployment]) -> None:
        """Look now and then at what others learnt of the limits of what this process uses."""
        now = self._times.now()
        self._rooms.forget(self._own.longest_window)
        used = (record.deployment for record in self._own)
        if self.trouble is None and (unseen := self._limits.unseen([*wanted, *used], now)):
            with suppress(StoreError):
                await self._see(unseen)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- failing and returning ------------------------------------------------------------------------

    async def _pass_on(
        self, call: Callable[[], Awaitable[object]], sample: Deployment | None
    ) -> StoreError | None:
        """Make a call that needs no answer; return why the store did not accept it, or None if it did."""
        if sample is not None:
            shard = self._shard(sample)
            if shard.trouble is not None:
                return StoreUnavailableError(shard.trouble)
        failure: StoreError | None = None
        for _ in range(_CALLS):
            try:
                await call()
            except StoreError as error:
                failure = error
                try:
                    await self._fail(error, [] if sample is None else [sample])
                except StoreError:  # overload
                    return failure
                if self.trouble is not None:
                    return failure
            else:
                return None
        return failure

    async def _fail(self, error: StoreError, candidates: Sequence[Deployment]) -> None:
        """Do without the shards that failed, unless they answer when they are asked again.

        Raises:
            StoreTimeoutError: A shard answers, but not this call in time: it is overloaded.
        """
        if not candidates:  # it was about no deployment in particular: look at those that are in use
            candidates = [record.deployment for record in self._own]
        shards = {shard.number: shard for shard, _ in self._runs(candidates)} or self._shards
        if error.shard is not None and error.shard in self._shards:
            shards = {error.shard: self._shards[error.shard]}
        for shard in list(shards.values()):
            if shard.trouble is not None:
                continue
            if not await self._answers(shard):
                self._do_without(shard, str(error))
            elif isinstance(error, StoreTimeoutError):
                raise error

    async def _answers(self, shard: Shard) -> bool:
        """Whether a shard answers, and accepts writes; asked once for all calls that timed out meanwhile."""
        if shard.check is None or shard.check.done() or shard.check.get_loop().is_closed():
            shard.check = asyncio.get_running_loop().create_task(self._accepts_writes(shard))
        return await asyncio.shield(shard.check)

    async def _accepts_writes(self, shard: Shard) -> bool:
        try:
            await self._teller.probe(shard.sample)
        except StoreError:
            return False
        return True

    def _do_without(self, shard: Shard, trouble: str) -> None:
        is_first = self.trouble is None
        level = logging.WARNING if is_first else logging.DEBUG
        shard.do_without(trouble, self._times.now())
        self._careful = True
        _log.log(level, "the store fails, going on %s: %s", _CONSEQUENCES[self._policy], trouble)
        if is_first:
            self._notify(trouble)

    def _probe_if_due(self, shard: Shard) -> None:
        if shard.probe_is_due(self._times.now()):
            shard.probe = asyncio.get_running_loop().create_task(self._return_to(shard))

    async def _return_to(self, shard: Shard) -> None:
        """Check whether a shard answers again; if so, tell it what it missed."""
        try:
            await self._catch_up(shard)
        except StoreError:
            shard.probe_later(self._times.now())
            return
        shard.trouble = None
        self._trust_no_more(shard, self._times.now())
        level = logging.WARNING if self.trouble is None else logging.DEBUG
        _log.log(level, "the store answers again")
        if self.trouble is None:
            self._notify(None)

    def _notify(self, trouble: str | None) -> None:
        for watcher in list(self._watchers):
            watcher(trouble)

    async def _catch_up(self, shard: Shard) -> None:
        """Tell a shard what was spent and which cooldowns began, until nothing is left to tell."""
        await self._teller.probe(shard.sample)
        await self._peers.announce()
        while untold := self._untold_records(shard):
            for record in untold:
                try:
                    await self._teller.charge(record)
                except StoreCorruptError as error:  # of this one alone
                    _log.debug("what was spent on %s could not be told: %s", record.deployment.id, error)
                    for entry in record.entries:
                        entry.counted = True
        await self._settle_what_is_left(shard.number)
        if not any(each.trouble is not None for each in self._shards.values() if each is not shard):
            await self._tell_cooldowns()

    async def _settle_what_is_left(self, shard: int | None = None) -> None:
        for key, (made, used) in list(self._unsettled.items()):
            if shard is None or self.shard_of(made.record.deployment) == shard:
                with suppress(StoreCorruptError):  # of this one alone, which the store can settle no more
                    await self._teller.settle(key, made, used)
                self._unsettled.pop(key, None)

    async def _tell_cooldowns(self) -> None:
        while (untold := self._untold.first()) is not None:
            with suppress(StoreCorruptError):  # of this one alone, whose place holds something else
                await self.behind.cool_down(untold.as_of_now(self._times))
                self._limits.told(untold.cooldown)
            self._untold.told(untold)

    def _untold_records(self, shard: Shard) -> list[Record]:
        return [
            record
            for record in self._own
            if self.shard_of(record.deployment) == shard.number and record.is_missing()
        ]


_CONSEQUENCES = {
    "closed": "by refusing every request",
    "local": "with this process's share of every quota",
    "open": "without limits",
}


def _tells_of_loss(decision: Decision, shard: Shard) -> bool:
    """Return whether a reply says that the store lost something, which this process did not know."""
    return bool(decision.reset_at) and decision.reset_at != shard.reset_at
