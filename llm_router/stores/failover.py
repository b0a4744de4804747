"""What to do while a store fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

import attrs

from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Quota, Refill
from llm_router.errors import ConfigError, StoreError, StoreUnavailableError
from llm_router.stores.base import Decision, DeploymentSnapshot, RateLimitStore, Sharded

__all__ = ["LOCAL_SHARE", "FailoverStore", "StoreFailurePolicy"]

_log = logging.getLogger("llm_router")
_T = TypeVar("_T")

StoreFailurePolicy = Literal["closed", "local", "open"]
"""What to do while the store fails: refuse, continue with a share of every quota, or without limits."""

LOCAL_SHARE = 0.25
"""The share of every quota that a process uses while it is on its own."""

_FIRST_PROBE, _LAST_PROBE = 1.0, 30.0
_CARRY_TTL = 60.0


class FailoverStore:
    """Stands in front of a store and takes over when it fails.

    If the store behind it does not answer, the policy decides: ``closed`` raises, ``open`` grants everything,
    ``local`` continues with a store of this process that holds a share of every quota. While this process is
    on its own, it tries the store again after 1 s, 2 s, 4 s, … up to every 30 s, in the background, so that
    no caller waits for it. When the store answers, it returns to it, and reports what was spent and which
    cooldowns began meanwhile. Each change of state is logged once.

    Args:
        store: The store behind it.
        local: The store of this process, for ``local``.
        policy: What to do while the store fails.
        local_share: The share of every quota for ``local``, above 0 and at most 1.
        owns_store: Whether closing this store closes the store behind it.
        clock: The source of time; the machine's clock by default.
    """

    def __init__(
        self,
        store: RateLimitStore,
        local: RateLimitStore,
        *,
        policy: StoreFailurePolicy = "local",
        local_share: float = LOCAL_SHARE,
        owns_store: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if policy not in ("closed", "local", "open"):
            raise ConfigError(f"on_store_failure must be 'closed', 'local' or 'open', not {policy!r}")
        if not 0 < local_share <= 1:
            raise ConfigError(f"local_share must be above 0 and at most 1, not {local_share!r}")
        self.behind = store
        """The store behind it."""
        self.trouble: str | None = None
        """Why this process is on its own, or None while the store answers."""
        self._sharded = store if isinstance(store, Sharded) else None
        self._local = local
        self._policy = policy
        self._share = local_share
        self._owns_store = owns_store
        self._clock = clock or SystemClock()
        self._delay = _FIRST_PROBE
        self._probe_at = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._shares: dict[str, tuple[Deployment, Deployment]] = {}
        self._local_reservations: dict[str, Deployment] = {}  # granted here, not yet settled
        # What to report to the store behind when it answers again:
        self._spent: dict[Deployment, Demand] = {}
        self._cooldowns: list[Cooldown] = []

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Reserve in the store, or as the policy says; see :class:`RateLimitStore`."""
        if self.trouble is None:
            try:
                return await self.behind.reserve(reservation_id, candidates, demand, ttl)
            except StoreError as error:
                self._fail(error)
        self._probe_if_due()
        return await self._alone(reservation_id, candidates, demand, ttl)

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Settle where the reservation was made; see :class:`RateLimitStore`."""
        deployment = self._local_reservations.pop(reservation_id, None)
        if deployment is None:
            await self._pass_on(lambda: self.behind.settle(reservation_id, used))
            return
        await self._local.settle(reservation_id, used)
        if self.trouble is None:
            await self._pass_on(lambda: self._carry(deployment, used))
        else:
            self._spend(deployment, used)

    async def release(self, reservation_id: str) -> None:
        """Release where the reservation was made; see :class:`RateLimitStore`."""
        if self._local_reservations.pop(reservation_id, None) is not None:
            await self._local.release(reservation_id)
        else:
            await self._pass_on(lambda: self.behind.release(reservation_id))

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Cool a scope down, here and in the store; see :class:`RateLimitStore`."""
        await self._local.cool_down(cooldown)
        if self.trouble is not None or not await self._pass_on(lambda: self.behind.cool_down(cooldown)):
            self._cooldowns = [
                c for c in self._cooldowns if c.scope != cooldown.scope or c.until > cooldown.until
            ]
            self._cooldowns.append(cooldown)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state that is decisive now; see :class:`RateLimitStore`."""
        if self.trouble is None:
            try:
                return await self.behind.snapshot(deployments)
            except StoreError as error:
                self._fail(error)
        self._probe_if_due()
        if self._policy == "closed":
            raise self._refusal()
        shares = await self._local.snapshot([self._share_of(deployment) for deployment in deployments])
        return [attrs.evolve(s, deployment=d) for s, d in zip(shares, deployments, strict=True)]

    async def aclose(self) -> None:
        """Release what this store holds open."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
            self._probe = None
        await self._local.aclose()
        if self._owns_store:
            await self.behind.aclose()

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

    # --- on its own -----------------------------------------------------------------------------------

    async def _alone(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        if self._policy == "closed":
            raise self._refusal()
        if self._policy == "open":
            self._local_reservations[reservation_id] = candidates[0]
            return Decision(candidates[0])
        shares = {self._share_of(deployment): deployment for deployment in candidates}
        decision = await self._local.reserve(reservation_id, list(shares), demand, ttl)
        decision.refusals = tuple(attrs.evolve(r, deployment=shares[r.deployment]) for r in decision.refusals)
        if decision.deployment is not None:
            decision.deployment = shares[decision.deployment]
            self._local_reservations[reservation_id] = decision.deployment
        return decision

    def _share_of(self, deployment: Deployment) -> Deployment:
        known = self._shares.get(deployment.id)
        if known is None or known[0] is not deployment:
            quotas = tuple(_share(quota, self._share) for quota in deployment.quotas)
            known = self._shares[deployment.id] = (deployment, attrs.evolve(deployment, quotas=quotas))
        return known[1]

    def _refusal(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"{self.trouble}; on_store_failure='closed' refuses until it answers")

    def _spend(self, deployment: Deployment, used: Demand) -> None:
        before = self._spent.get(deployment, Demand(0, 0))
        self._spent[deployment] = Demand(before.requests + used.requests, before.tokens + used.tokens)

    # --- failing and returning ------------------------------------------------------------------------

    async def _pass_on(self, call: Callable[[], Awaitable[_T]]) -> bool:
        """Make a call that needs no answer; return whether the store accepted it."""
        if self.trouble is not None:
            return False
        try:
            await call()
        except StoreError as error:
            self._fail(error)
            return False
        return True

    def _fail(self, error: StoreError) -> None:
        if self.trouble is None:
            self.trouble = str(error)
            self._delay = _FIRST_PROBE
            self._probe_at = self._clock.time() + self._delay
            _log.warning("the store fails, going on %s: %s", _CONSEQUENCES[self._policy], error)

    def _probe_if_due(self) -> None:
        idle = self._probe is None or self._probe.done()
        if idle and self.trouble is not None and self._clock.time() >= self._probe_at:
            self._probe = asyncio.get_running_loop().create_task(self._return())

    async def _return(self) -> None:
        """Check whether the store answers again; if so, report to it what it missed."""
        try:
            await self._catch_up()
        except StoreError:
            self._delay = min(self._delay * 2, _LAST_PROBE)
            self._probe_at = self._clock.time() + self._delay
            return
        self.trouble = None
        _log.warning("the store answers again")

    async def _catch_up(self) -> None:
        await self.behind.snapshot([])
        while self._cooldowns:
            await self.behind.cool_down(self._cooldowns[0])
            del self._cooldowns[0]
        while self._spent:
            deployment = next(iter(self._spent))
            await self._carry(deployment, self._spent[deployment])
            del self._spent[deployment]

    async def _carry(self, deployment: Deployment, used: Demand) -> None:
        """Report to the store what was spent, counted from now on, which is late but never early.

        A settle may exceed the limit, a reserve may not: so reserve the minimum and settle the full amount.
        If even the minimum is refused, the quota is spent anyway.
        """
        reservation_id = f"carried-{id(self):x}-{deployment.id}-{self._clock.time()}"
        minimum = Demand(min(used.requests, 1), min(used.tokens, 1))
        decision = await self.behind.reserve(reservation_id, [deployment], minimum, _CARRY_TTL)
        if decision.deployment is not None:
            await self.behind.settle(reservation_id, used)


_CONSEQUENCES = {
    "closed": "by refusing every request",
    "local": "with this process's share of every quota",
    "open": "without limits",
}


def _share(quota: Quota, share: float) -> Quota:
    """Return a share of ``quota``; less than one request per window becomes one in a longer window."""
    limit = quota.limit * share
    if limit >= 1 or quota.limit == 0:
        whole = int(limit)
        burst = None if quota.burst is None else max(1, min(whole, int(quota.burst * share)))
        return attrs.evolve(quota, limit=whole, burst=burst)
    stretched = quota.window if quota.refill is Refill.DAILY else quota.window / limit
    return attrs.evolve(quota, limit=1, window=stretched, burst=None)
