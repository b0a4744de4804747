"""The store that stands in front of another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress

import attrs

from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import MINUTE, Demand
from llm_router.errors import ConfigError, StoreError
from llm_router.stores.base import Decision, DeploymentSnapshot, RateLimitStore, Taking
from llm_router.stores.failover.alone import LOCAL_SHARE
from llm_router.stores.failover.backlog import Backlog
from llm_router.stores.failover.books import Books
from llm_router.stores.failover.careful import CarefulReserve
from llm_router.stores.failover.losses import Losses, tells_of_loss
from llm_router.stores.failover.outages import Outages, StoreFailurePolicy
from llm_router.stores.failover.peers import LocalShare
from llm_router.stores.failover.records import excess
from llm_router.stores.failover.shards import Shards
from llm_router.stores.failover.takings import OpenReservation
from llm_router.stores.failover.telling import Teller

__all__ = ["FailoverStore"]


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

    A call that times out while the store answers another one is overload, not a failure of the store: the
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
        self._policy = policy
        self._owns_store = owns_store
        self._books = Books.of(store, local_share, first_share, clock or SystemClock())
        self._own = self._books.own
        self._now = self._books.times.now
        self._shards = Shards(store)
        self._teller = Teller(store, self._own, self._books.peers, self._books.times)
        self._backlog = Backlog(store, self._shards, self._books, self._teller)
        self._outages = Outages(policy, self._shards, self._books, self._teller, self._backlog)
        self._losses = Losses(self._shards, self._books, self._teller, self._start)
        self._careful = CarefulReserve(
            store, policy, self._shards, self._books, self._outages, self._losses, self.release, self._pass_on
        )
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the store ------------------------------------------------------------------------------------

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve in the store, or as the policy says; see :class:`RateLimitStore`."""
        now, own = self._now(), self._own
        if not own.seen <= now < own.due:
            self._heed(now, candidates)
        if self._shards.careful:
            return await self._careful.reserve(reservation_id, candidates, demand, ttl)
        try:
            decision = await self.behind.reserve(reservation_id, candidates, demand, ttl)
        except StoreError as error:
            await self._outages.fail(error, candidates)
            return await self._careful.reserve(reservation_id, candidates, demand, ttl)
        if decision.refusals:
            self._books.rooms.note_refusals(decision.refusals, demand)
        if decision.deployment is not None:
            lost = decision.reset_at and tells_of_loss(decision, self._shards.of(decision.deployment))
            await self._careful.note_grant(reservation_id, decision, demand, ttl, now, shows_room=not lost)
        if decision.lost or decision.reset_at:
            try:
                await self._careful.heed_loss(decision, candidates)
            except StoreError as error:
                if decision.deployment is None:
                    await self._outages.fail(error, candidates)
                # What was granted stands, and the next call notices the loss again.
            if decision.deployment is None and decision.lost:
                return await self._careful.reserve(reservation_id, candidates, demand, ttl)
            return await self._careful.unless_lost(reservation_id, decision)
        return decision

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Settle where the reservation was made; see :class:`RateLimitStore`."""
        now, own = self._now(), self._own
        made = own.close(reservation_id, used)
        if not own.seen <= now < own.due:
            self._heed(now)
        if not self._shards.careful and (made is None or made.in_store):
            try:
                return await self.behind.settle(reservation_id, used)
            except StoreError:  # a second look decides
                pass
        return await self._settle_carefully(reservation_id, used, made)

    async def _settle_carefully(
        self, reservation_id: str, used: Demand, made: OpenReservation | None
    ) -> None:
        """Settle wherever the reservation may be, and remember it if that is not possible yet."""
        pass_on = self._outages.pass_on
        if made is None:
            await pass_on(lambda: self.behind.settle(reservation_id, used), None)
            return
        deployment = made.record.deployment
        alone = self._shards.of(deployment).alone
        if alone is not None and alone is made.alone:
            await alone.settle(reservation_id, used)
        elif alone is not None:
            await alone.add(deployment, excess(used, made.demand), made.made)
        if made.in_store:
            failure = await pass_on(lambda: self.behind.settle(reservation_id, used), deployment)
            if failure is not None:
                self._backlog.add_settlement(reservation_id, made, used)
        elif made.record.is_missing():
            await pass_on(lambda: self._teller.charge(made.record), deployment)

    async def release(self, reservation_id: str) -> None:
        """Release where the reservation was made; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, Demand(0, 0))

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
        books, untold = self._books, self._backlog.cooldowns
        self._heed(self._now())
        books.cooldowns.add(cooldown)
        later = attrs.evolve(cooldown, learnt=books.limits.learn(cooldown, books.times.wall()))
        for shard in self._shards:
            if shard.alone is not None:
                await shard.alone.cool_down(cooldown)
        if self.trouble is not None:
            untold.add(later)
            return
        failure = await self._outages.pass_on(lambda: self.behind.cool_down(cooldown), None)
        if failure is None:
            books.limits.told(cooldown)
        else:
            untold.add(later)
            if self.trouble is None:
                raise failure

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state that is decisive now; see :class:`RateLimitStore`."""
        self._heed(self._now())
        if self.trouble is None:
            try:
                return await self._see(deployments)
            except StoreError as error:
                await self._outages.fail(error, deployments)
        snapshots: list[DeploymentSnapshot] = []
        for shard, run in self._shards.runs(deployments):
            self._outages.probe_if_due(shard)
            if shard.trouble is None:
                snapshots += await self._see(run)
            elif self._policy == "closed":
                raise self._careful.refusal(shard)
            else:
                snapshots += await self._books.alone(shard).snapshot(run)
        if not deployments:
            for shard in self._shards:
                self._outages.probe_if_due(shard)
        return snapshots

    async def aclose(self) -> None:
        """Release what this store holds open."""
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None] | asyncio.Task[bool] | None] = [*self._tasks]
        for shard in self._shards:
            tasks += shard.probe, shard.check
            shard.probe = shard.check = None
        mine = [task for task in tasks if task is not None and task.get_loop() is loop]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        if self._owns_store:
            await self.behind.aclose()

    # --- whether it stands in for the store -----------------------------------------------------------

    def watch(self, watcher: Callable[[str | None], None]) -> Callable[[], None]:
        """Have ``watcher`` called whenever :attr:`trouble` begins or ends, with its new value.

        Return what ends that; it may be called twice. The watcher must not raise.
        """
        return self._shards.watch(watcher)

    @property
    def trouble(self) -> str | None:
        """Why this process is on its own, at least in part; None while the store answers."""
        return self._shards.trouble

    @property
    def shards(self) -> int:
        """The number of shards of the store behind it; see :class:`Sharded`."""
        return self._shards.count

    def shard_of(self, deployment: Deployment) -> int:
        """Return the shard in the store behind it; see :class:`Sharded`."""
        return self._shards.number_of(deployment)

    def __repr__(self) -> str:
        state = "" if self.trouble is None else f", on its own ({self._policy})"
        return f"FailoverStore({self.behind!r}{state})"

    # --- what is due now and then ---------------------------------------------------------------------

    def _heed(self, now: float, wanted: Iterable[Deployment] = ()) -> None:
        """Do what is due: on any call, though at most about once a second."""
        self._own.heed(now)
        if self._books.peers.is_due(now):
            self._start(self._announce())
            self._start(self._look_around(wanted))

    async def _announce(self) -> None:
        """Announce this process, and do what calls left undone that failed though the store answers."""
        with suppress(StoreError):
            await self._books.peers.announce()
            await self._books.peers.warn_once()
            if not self._shards.careful:
                await self._backlog.tell_rest()

    async def _look_around(self, wanted: Iterable[Deployment]) -> None:
        """Look now and then at what others learnt of the limits of what this process uses."""
        self._books.rooms.forget(self._own.longest_window)
        used = (record.deployment for record in self._own)
        if self.trouble is None and (unseen := self._books.limits.unseen([*wanted, *used], self._now())):
            with suppress(StoreError):
                await self._see(unseen)

    async def _see(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return what the store shows, and note its limits, unless this process learnt others meanwhile."""
        limits = self._books.limits
        changes = limits.changes
        snapshots = await self.behind.snapshot(deployments)
        now = self._now()
        limits.looked_at(deployments, now)
        if not self._shards.careful:  # else others may not have told the store yet what they took
            self._books.rooms.note_snapshots([each for each in snapshots if self._is_news(each, now)])
        if changes == limits.changes and not self._backlog.cooldowns:
            limits.see(snapshots)
        return snapshots

    def _is_news(self, snapshot: DeploymentSnapshot, now: float) -> bool:
        """Whether no grant has shown the room lately, which says more: also whether something was lost."""
        record = self._own.get(snapshot.deployment.model_scope)
        return record is None or not now - MINUTE < record.told_at <= now

    def _pass_on(self, probes: Iterable[Cooldown]) -> None:
        """Let another request probe half-open cooldowns: the one that was to do so is not sent."""
        for probe in probes:
            self._start(self._retry(probe))

    async def _retry(self, probe: Cooldown) -> None:
        with suppress(StoreError):
            await self.behind.cool_down(Cooldown.retry(probe.scope))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
