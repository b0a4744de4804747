"""From a wish to a lease: shortlist, reserve, and wait in line."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from contextlib import suppress
from operator import attrgetter

import anyio
import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.quota import Demand
from llm_router.engine.doze import Doze
from llm_router.engine.estimates import TokenEstimates
from llm_router.engine.launch import LaunchPad
from llm_router.engine.lease import Lease, new_reservation_id
from llm_router.engine.outage import Outage
from llm_router.engine.pacing import Pace
from llm_router.engine.plan import Plan
from llm_router.engine.pool import Pool, Slot
from llm_router.engine.timing import Deadlines, finish
from llm_router.errors import StoreError
from llm_router.stores.base import RateLimitStore, Refusal
from llm_router.strategies.base import SelectionStrategy

__all__ = ["Need", "Selector", "Shortage"]


_deployment = attrgetter("deployment")


@attrs.define
class Need:
    """What a request needs of a deployment; made once in every try, hence not frozen, which costs more.

    Attributes:
        plan: Where to look.
        tokens: Estimated input tokens, uncorrected.
        ttl: Seconds after which the reservation expires if this process dies.
    """

    plan: Plan
    tokens: int
    ttl: float


@attrs.frozen
class Shortage:
    """That no deployment of a plan has room.

    Attributes:
        retry_at: Seconds since the epoch at which the first of them will; ``math.inf`` for never.
        refusals: What those said that were asked for this very request.
    """

    retry_at: float
    refusals: tuple[Refusal, ...] = ()


class _Line:
    """Who waits for the same candidates: the lock is the line, its holder the head."""

    def __init__(self, shortage: Shortage) -> None:
        self.lock = anyio.Lock(fast_acquire=True)
        self.members = 0
        self.shortage = shortage
        self.alarm: asyncio.Event | None = None
        self.doze = Doze()


class Selector:
    """Grants leases.

    Args:
        store: Who decides.
        pool: What this process knows.
        strategy: How it ranks.
        clock: Where time comes from.
        outage: Whether the provider can be reached at all.
        pad: Where requests stand between reservation and network.
        pace: Keeps outbound calls apart, or None.
    """

    def __init__(
        self,
        store: RateLimitStore,
        pool: Pool,
        strategy: SelectionStrategy,
        clock: Clock,
        outage: Outage,
        pad: LaunchPad,
        pace: Pace | None = None,
    ) -> None:
        self.estimates = TokenEstimates()
        self._store = store
        self._pool = pool
        self._strategy = strategy
        self._clock = clock
        self._outage = outage
        self._pace = pace
        self._pad = pad
        self._deadlines = Deadlines(clock)
        self._lines: dict[Plan, _Line] = {}

    async def acquire(self, need: Need, patience: float, tried: Container[Slot] = ()) -> Lease | Shortage:
        """Reserve quota on the best deployment with room.

        Args:
            need: What is needed.
            patience: Seconds to wait for room at most. Who waits is served in the order of arrival among
                those with the same plan; who does not wait is answered at once.
            tried: Deployments to take only if there is no other.

        Returns:
            A lease, or a shortage if there is no room now and none will come in time.
        """
        deadline = self._clock.time() + patience
        line = self._lines.get(need.plan)
        if line is None or line.shortage.retry_at > deadline:  # nobody to overtake, or no time to queue
            outcome = await self._try(need, tried)
            if isinstance(outcome, Lease) or patience <= 0 or outcome.retry_at > deadline:
                return outcome
            line = self._lines.get(need.plan) or self._lines.setdefault(need.plan, _Line(outcome))
        return await self._wait(line, need, deadline, tried)

    def returned(self, slot: Slot) -> None:
        """Note that quota of ``slot`` came back before its time."""
        self._pool.rouse(slot.deployment.model_scope, self._clock.time())
        for line in self._lines.values():
            if line.alarm is not None:
                line.alarm.set()

    @property
    def waiting(self) -> int:
        """How many requests wait in line."""
        return sum(line.members for line in self._lines.values())

    # --- asking the store -----------------------------------------------------------------------------

    async def _try(self, need: Need, tried: Container[Slot]) -> Lease | Shortage:
        now = self._clock.time()
        if now < self._outage.until:
            return Shortage(self._outage.until)
        refused: dict[Slot, Refusal] = {}
        slots = need.plan.shortlist(self._strategy, now)
        if slots:
            lease = await self._reserve(slots, need, refused, tried)
            if lease is not None:
                return lease
        return await self._try_further(need, refused, tried)

    async def _try_further(
        self, need: Need, refused: dict[Slot, Refusal], tried: Container[Slot]
    ) -> Lease | Shortage:
        """Ask everybody else who may have room."""
        time = self._clock.time
        for slots in need.plan.further(self._strategy, time, refused):
            if time() < self._outage.until:
                return Shortage(self._outage.until)
            lease = await self._reserve(slots, need, refused, tried)
            if lease is not None:
                return lease
        return Shortage(need.plan.retry_at(time(), refused), tuple(refused.values()))

    async def _reserve(
        self, slots: list[Slot], need: Need, refused: dict[Slot, Refusal], tried: Container[Slot]
    ) -> Lease | None:
        if tried:
            slots = sorted(slots, key=lambda slot: slot in tried)
        if self._pace is not None:
            await self._pace.wait()
        if not self._pad.try_enter():
            await self._pad.enter()
        lease = None
        try:
            lease = await self._ask(slots, need, refused)
        finally:
            if lease is None:
                self._pad.leave()
        return lease

    async def _ask(self, slots: list[Slot], need: Need, refused: dict[Slot, Refusal]) -> Lease | None:
        models = need.plan.models if len(need.plan.models) == 1 else _models(slots)
        demand = Demand(1, self.estimates.corrected(need.tokens, models))
        reservation_id = new_reservation_id()
        candidates = list(map(_deployment, slots))
        try:
            decision = await self._store.reserve(reservation_id, candidates, demand, need.ttl)
        except asyncio.CancelledError:
            with suppress(StoreError):  # the reservation expires by itself; the cancellation goes first
                await finish(self._store.release(reservation_id))
            raise
        now = self._clock.time()
        for refusal in decision.refusals:
            self._pool.learn(refusal, now)
            refused[self._pool.slot(refusal.deployment)] = refusal
        if decision.deployment is None:
            return None
        slot = self._pool.slot(decision.deployment)
        slot.observe(decision, now)
        return Lease(self._store, reservation_id, slot, demand, self._pad, self.returned)

    # --- waiting in line ------------------------------------------------------------------------------

    async def _wait(
        self, line: _Line, need: Need, deadline: float, tried: Container[Slot]
    ) -> Lease | Shortage:
        line.members += 1
        try:
            with self._deadlines.limit(deadline - self._clock.time()) as limit:
                async with line.lock:
                    outcome = await self._head(line, need, deadline, tried)
            return line.shortage if limit.expired else outcome
        finally:
            line.members -= 1
            if not line.members and self._lines.get(need.plan) is line:
                del self._lines[need.plan]

    async def _head(
        self, line: _Line, need: Need, deadline: float, tried: Container[Slot]
    ) -> Lease | Shortage:
        """Try, and sleep until it makes sense to try again."""
        is_time = False  # whether this try is made because somebody should have room by now
        while True:
            # Made before asking: what comes back while the store is being asked must not be missed.
            line.alarm = asyncio.Event()
            outcome = await self._try(need, tried)
            if isinstance(outcome, Lease):
                line.doze.succeeded()
                return outcome
            line.shortage = outcome
            if outcome.retry_at > deadline:
                return outcome
            if is_time:
                line.doze.failed()
            now = self._clock.time()
            is_time = await self._sleep(line.doze.until(now, outcome.retry_at, deadline) - now, line.alarm)

    async def _sleep(self, seconds: float, alarm: asyncio.Event) -> bool:
        """Sleep until the alarm, so long at most; tell whether it took so long."""
        woken_by_timer = False

        def wake() -> None:
            nonlocal woken_by_timer
            woken_by_timer = not alarm.is_set()
            alarm.set()

        timer = self._clock.call_later(seconds, wake)
        try:
            await alarm.wait()
        finally:
            timer.cancel()
        return woken_by_timer


def _models(slots: list[Slot]) -> set[str]:
    return {slot.deployment.model for slot in slots}
