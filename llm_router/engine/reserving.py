"""Take quota for a request on the best deployment with room, and see that it is dispatched soon after."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections import deque
from collections.abc import Callable, Collection, Container, Coroutine, Hashable, Iterable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from operator import attrgetter
from typing import Any

from llm_router.domain.clock import Clock, Timer, monotonic
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.quota import Demand
from llm_router.domain.response import PassedOver
from llm_router.engine.extensions import (
    is_foreign,
    no_decision,
    note_failure,
    pass_on,
    store_error,
    wrong_decision,
)
from llm_router.engine.fair_queue import Ticket
from llm_router.engine.forecast import forecast_for
from llm_router.engine.index import TOKEN_REASONS, DeploymentState, FallbackOrder
from llm_router.engine.lines import Queued
from llm_router.engine.pacing import Paced, Pacer
from llm_router.engine.pool import Pool
from llm_router.engine.probes import Probes
from llm_router.engine.project_limits import heed
from llm_router.engine.project_store import ProjectStore
from llm_router.engine.quarantines import Quarantines
from llm_router.engine.reporting import Reporter, waiting
from llm_router.engine.search import (
    FIRST_CANDIDATES,
    Unsuitable,
    cooled_down,
    further,
    retry_at,
    uncounted,
    without_feature,
)
from llm_router.engine.state import SendState
from llm_router.engine.throttle import Throttle
from llm_router.engine.timing import Deadlines, finish
from llm_router.engine.waiting import Shortage, WaitingLine
from llm_router.errors import ExtensionError, LLMRouterError, QuotaExhaustedError, RouterClosedError
from llm_router.stores.base import Decision, RateLimitStore, Refusal
from llm_router.strategies.base import SelectionStrategy

__all__ = ["PERMITS", "DispatchGate", "Lease", "Selector", "new_reservation_id"]

_NOTHING = Demand(0, 0)
_EQUAL: Mapping[str, float] = {}
_UNPACED = nullcontext()

_PLACES_KEPT = 3
"""After how many failed attempts a request goes first again; who always fails must not hold up others."""

_SET_BACK = 1.0
"""Seconds by which a clock must be set back for that to be noticed. Less does no harm."""

_deployment = attrgetter("deployment")


class Selector:
    """Grants leases: draws a shortlist, has the store reserve, asks further deployments, waits in line.

    Args:
        store: Decides.
        pool: Takes note of refusals.
        strategy: Ranks.
        clock: Where time comes from.
        deadlines: Limits the waits.
        gate: Where requests pass between reservation and network.
        throttle: Bounds the calls per second, or None.
        reporter: Reports to observers, or None.
        tenant_weights: Of the tenants that are to get more or less than others, whose weight is 1.
        pacer: Spreads the quotas of a day, or None.

    Attributes:
        quarantines: The quarantines that this process meets.
        probes: The half-open cooldowns that it meets.
        pacer: As given.
        queued: The requests that wait.
    """

    def __init__(
        self,
        store: RateLimitStore,
        pool: Pool,
        strategy: SelectionStrategy,
        clock: Clock,
        deadlines: Deadlines,
        gate: DispatchGate,
        throttle: Throttle | None = None,
        reporter: Reporter | None = None,
        tenant_weights: Mapping[str, float] = _EQUAL,
        pacer: Pacer | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._strategy = strategy
        self._clock = clock
        self._monotonic = monotonic(clock)
        self._ahead = clock.time() - self._monotonic()
        self._deadlines = deadlines
        self._gate = gate
        self._throttle = throttle
        self._reporter = reporter
        self._tenant_weights = tenant_weights
        self.pacer = pacer
        self._distrusts = is_foreign(store)
        self._lines: dict[Hashable, WaitingLine] = {}
        self.queued = Queued()
        self.quarantines = Quarantines(store, pool, reporter, self.look_again)
        self.probes = Probes()
        self._closed = False
        pool.on_share = self._count_projects

    async def acquire(self, send: SendState, max_wait: float) -> Lease | Shortage:
        """Reserve quota on the best deployment with room.

        Args:
            send: The request. Deployments that it has tried are taken only if there is no other.
            max_wait: Most seconds to wait for room. Waiters that may use the same deployments are served one
                after the other: interactive ones first, tenants by the tokens that they were served. Callers
                that do not wait are answered at once.

        Returns:
            A lease, or a shortage if there is no room now and none will come in time.

        Raises:
            StoreError: The store failed.
            QuotaExhaustedError: The throttle does not let the request pass in time.
            RouterClosedError: The selector was closed meanwhile.
        """
        deadline = self._monotonic() + max_wait
        # What those have in common that may use the same deployments, and so share a line.
        wish: Hashable = send.order
        if send.unfit or send.features or send.projects:  # the few that have reason to leave some of it out
            wish = send.order, send.unfit, send.features, send.projects
        line = self._lines.get(wish)
        # With no waiter to overtake, or no time to queue, there is no line to join.
        if (
            line is None
            or not line.members
            or max_wait <= 0
            or self._is_after(line.shortage.retry_at, deadline)
        ):
            outcome = await self._try(send)
            if isinstance(outcome, Lease) or max_wait <= 0 or self._is_after(outcome.retry_at, deadline):
                if line is not None and line.members and isinstance(outcome, Lease):
                    _charge(line, _ticket(send), outcome)  # it has overtaken those that wait
                return outcome
            line = self._lines.get(wish)  # another request may have opened it meanwhile
            if line is None:
                line = self._lines[wish] = self._open_line(send.order, outcome)
            elif not line.members:
                line.shortage = outcome
        ticket = _ticket(send)
        wanting = _UNPACED if self.pacer is None else self.pacer.waiting(send.order.workload)
        try:
            with wanting, waiting(self._reporter, send, "quota"), self.queued.counted(ticket):
                return await line.wait(deadline, partial(self._try_in_turn, send, line, ticket), ticket)
        finally:
            if wish is not send.order and not line.members:  # there may be as many wishes as projects
                self._lines.pop(wish, None)

    def _open_line(self, order: FallbackOrder, shortage: Shortage) -> WaitingLine:
        weights = self._tenant_weights
        return WaitingLine(shortage, self._clock, self._deadlines, weights, forecast_for(order))

    async def _try_in_turn(self, send: SendState, line: WaitingLine, ticket: Ticket) -> Lease | Shortage:
        """Ask as the head of a line; what is granted counts as served to the tenant."""
        outcome = await self._try(send)
        if isinstance(outcome, Lease):
            _charge(line, ticket, outcome)
        return outcome

    def _is_after(self, moment: float, deadline: float) -> bool:
        """Whether ``moment``, in seconds since the epoch, is after ``deadline``, on the monotonic clock."""
        return moment > self._clock.time() + (deadline - self._monotonic())

    def quota_returned(self, state: DeploymentState) -> None:
        """Note that quota of a deployment came back early."""
        self._pool.return_quota_of(state, self._clock.time())
        self.look_again()

    def _count_projects(self) -> None:
        """Reserve on projects as well, from the first one on that limits are known of."""
        if not isinstance(self._store, ProjectStore):
            self._store = ProjectStore(self._store, self._pool, self._clock, self.look_again)

    def look_again(self) -> None:
        """Have the requests that wait try again now."""
        for line in self._lines.values():
            line.notify()

    def follow(self, orders: Collection[FallbackOrder], grace: float) -> None:
        """Go by a pool that has changed: what waits tries again now, and no empty line is kept.

        Args:
            orders: The orders that later requests will have.
            grace: Seconds of grace of the dispatch gate.
        """
        self._gate.grace = grace
        if self.pacer is not None:
            self.pacer.forget()
        kept = set(orders)
        self._lines = {wish: line for wish, line in self._lines.items() if line.members or wish in kept}
        for wish, line in self._lines.items():
            line.forecast = forecast_for(_order_of(wish))
        self.look_again()

    def close(self) -> None:
        """Grant no further lease; what waits is told so."""
        self._closed = True
        self.look_again()

    @property
    def waiting(self) -> int:
        """How many requests wait in line."""
        return sum(line.members for line in self._lines.values())

    async def _try(self, send: SendState) -> Lease | Shortage:
        """Ask the shortlist, then every other deployment that may have room."""
        self._check_open()
        held = self._pool.states
        refused: dict[DeploymentState, Refusal] = {}
        skip: Container[DeploymentState] = ()
        if send.unfit or send.overloaded or send.features or send.projects or self.pacer is not None:
            skip = self._left_out(send, refused)
        now = self._clock.time()
        if now >= self._pool.again_at:
            self._pool.ask_again(now)
        draw = send.order.draw if send.requests else partial(uncounted, send.order)
        shortlist = draw(self._strategy, now, FIRST_CANDIDATES, skip)
        if shortlist:
            lease = await self._reserve(send, shortlist, refused)
            if lease is not None:
                return lease
        self._heed_the_clock(send.order)
        lease, is_asked = await self._ask_further(send, refused, skip)
        if lease is not None:
            return lease
        is_asked = is_asked or bool(shortlist)
        again = self._pool.states is not held  # a reload: what was found out is of the past
        if not is_asked and not again:
            lease, again = await self._ask_cooled_down(send, refused, skip)
            if lease is not None:
                return lease
        if send.overloaded and not again:  # nothing else has room: better an overloaded model than none
            send.overloaded = {}
            again = True
        if again:
            return await self._try(send)
        refused = {**dict(without_feature(send, self._clock.time())), **refused}
        return Shortage(retry_at(send.order, self._clock.time(), refused), tuple(refused.values()))

    async def _ask_further(
        self, send: SendState, refused: dict[DeploymentState, Refusal], skip: Container[DeploymentState]
    ) -> tuple[Lease | None, bool]:
        """Ask what may have room beyond the shortlist; return a lease, if any, and if one was asked."""
        is_asked = False
        for candidates in further(send.order, self._strategy, self._clock.time, refused, skip):
            is_asked = True
            lease = await self._reserve(send, candidates, refused)
            if lease is not None:
                return lease, True
        return None, is_asked

    async def _ask_cooled_down(
        self, send: SendState, refused: dict[DeploymentState, Refusal], skip: Container[DeploymentState]
    ) -> tuple[Lease | None, bool]:
        """Ask what cools down, as all that is known was found out for others.

        Return a lease, if any, and whether to begin anew: another process has lifted something meanwhile.
        """
        cooled = self._cooled_down(send, refused, skip)
        if not cooled:
            return None, False
        before = self.quarantines.lifts
        lease = await self._reserve(send, cooled, refused)
        if lease is not None or self.quarantines.lifts != before:
            return lease, True
        # Those may have room later than was known for others, so that more are worth asking now.
        lease, _ = await self._ask_further(send, refused, skip)
        return lease, False

    def _cooled_down(
        self, send: SendState, refused: dict[DeploymentState, Refusal], skip: Container[DeploymentState]
    ) -> list[DeploymentState]:
        if not isinstance(skip, Paced):
            return cooled_down(send.order, refused, skip)
        # Those that keep the pace may be few: they are not searched for among all.
        return [state for state in cooled_down(send.order, refused, skip.skip) if state not in skip]

    def _left_out(
        self, send: SendState, refused: dict[DeploymentState, Refusal]
    ) -> Container[DeploymentState]:
        """Return what a request must leave out; what that is for the sake of the pace adds to ``refused``."""
        now, workload = self._clock.time(), send.order.workload
        skip: Container[DeploymentState] = ()
        if send.unfit or send.overloaded or send.features or send.projects:
            skip = Unsuitable(send, now)
        if self.pacer is None or not send.requests:
            return skip
        self.pacer.ask(workload)
        return Paced(self.pacer, workload, now, refused, skip)

    def _heed_the_clock(self, order: FallbackOrder) -> None:
        """See that nothing is avoided for longer because the clock was set back."""
        now = self._clock.time()
        for upstream in order.upstreams:
            upstream.breaker.heed(now)
        before, self._ahead = self._ahead, now - self._monotonic()
        if self._ahead < before - _SET_BACK:
            self._pool.set_back(before - self._ahead, now)

    async def _reserve(
        self, send: SendState, candidates: list[DeploymentState], refused: dict[DeploymentState, Refusal]
    ) -> Lease | None:
        """Pass the gate, and have the store reserve on one of ``candidates``; add refusals to ``refused``."""
        if send.tried:
            candidates = sorted(candidates, key=send.tried.__contains__)
        held = self._pool.states
        if self._throttle is not None:
            await self._pace(send, self._throttle)
        if not self._gate.try_enter():
            await self._gate.enter()
        lease = None
        try:
            self._check_open()
            if self._pool.states is not held:  # a reload, while this request waited for its turn
                candidates = list(filter(self._pool.holds, candidates))
            if candidates:
                lease = await self._ask(send, candidates, refused)
        finally:
            if lease is None:
                self._gate.leave()
        # `is_parked` spelt out, since every send comes here.
        if lease is not None and (refused or lease.state.ring_index < 0 or self.pacer is not None):
            self._note_grant(send, lease, refused)
        if self._closed and lease is not None:  # meanwhile: the request must not be sent any more
            try:
                await finish(pass_on(self._store, lease.probes))
            finally:
                await lease.close()
            self._check_open()
        return lease

    def _note_grant(self, send: SendState, lease: Lease, refused: Mapping[DeploymentState, Refusal]) -> None:
        """Note what else a grant says, and what came before it."""
        if refused:
            lease.passed_over = _passed_over(refused.values())
        if send.requests:
            if lease.state.is_parked:
                # It had room before the time that was known, so it may have more.
                self._pool.return_quota(self._pool.quota_scope_of(lease.state), self._clock.time())
            if self.pacer is not None:
                self.pacer.note(lease.state, send.order.workload, self._clock.time())

    async def _pace(self, send: SendState, throttle: Throttle) -> None:
        """Wait for the turn of a call.

        Raises:
            QuotaExhaustedError: It does not come within the time that the request has.
        """
        left = send.started + send.max_wait + send.timeout - self._monotonic()
        seconds = await throttle.wait(max(left, 0.0))
        if seconds:
            raise QuotaExhaustedError(
                f"this process sends no faster than max_requests_per_second allows: retry in {seconds:.1f} s",
                retry_after=seconds,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RouterClosedError("this router was closed before the request was sent")

    async def _ask(
        self, send: SendState, candidates: list[DeploymentState], refused: dict[DeploymentState, Refusal]
    ) -> Lease | None:
        demand = _demand(send, candidates) if send.requests else _NOTHING
        reservation_id = new_reservation_id()
        deployments = list(map(_deployment, candidates))
        returns = self._pool.returns
        failure: ExtensionError | None = None
        decision: Decision | None = None
        try:
            decision = await self._store.reserve(reservation_id, deployments, demand, send.ttl)
        except asyncio.CancelledError:
            await self._give_back(reservation_id, candidates)  # before anything else
            raise
        except LLMRouterError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises
            failure = store_error(self._store, "reserve", error)
        # Not above: what is raised here must not refer to the other error.
        if self._distrusts or not isinstance(decision, Decision):
            decision = await self._checked(decision, failure, reservation_id, candidates)
        now = self._clock.time()
        if decision.lifts != self.quarantines.lifts:
            self.quarantines.notice_lifts(decision.lifts, now)
        lease = None
        if decision.deployment is not None:
            granted = self._pool.states.get(decision.deployment)
            if granted is None:  # a reload, while the store was asked
                granted = candidates[deployments.index(decision.deployment)]
                if not self._pool.holds(granted):
                    await self._give_back(reservation_id, [granted], decision.probes)
                    return None
            granted.observe(decision, now)
            self.probes.granted(decision.probes)
            lease = Lease(
                self._store, reservation_id, granted, demand, self._gate, self.quota_returned, decision, now
            )
        if decision.refusals:
            refusals = self._pool.as_of_now(decision.refusals, returns, now)
            await self._note_refusals(send, refusals, demand, refused, lease, now)
        return lease

    async def _checked(
        self,
        decision: object,
        failure: ExtensionError | None,
        reservation_id: str,
        candidates: list[DeploymentState],
    ) -> Decision:
        """Return the decision of a user's store, if it is one.

        Raises:
            ExtensionError: It is none, or ``failure`` is why there is none.
        """
        if not isinstance(decision, Decision):
            raise failure or no_decision(self._store, decision)
        failure = wrong_decision(self._store, decision, list(map(_deployment, candidates)))
        if failure is not None:
            await self._give_back(reservation_id, candidates)
            raise failure
        return decision

    async def _give_back(
        self, reservation_id: str, candidates: list[DeploymentState], probes: tuple[Cooldown, ...] = ()
    ) -> None:
        """Release what was reserved on one of ``candidates``, but is not to be used any more.

        Another request may then probe what this one was to, unless the store sees to that.
        """
        try:
            await finish(self._release(reservation_id, probes))
        except Exception as error:  # noqa: BLE001 - of a user's store; the reservation expires by itself
            note_failure(self._store, "release", error)
        else:
            for state in candidates:
                self.quota_returned(state)

    async def _release(self, reservation_id: str, probes: tuple[Cooldown, ...]) -> None:
        await pass_on(self._store, probes)
        await self._store.release(reservation_id)

    async def _note_refusals(
        self,
        send: SendState,
        refusals: tuple[Refusal, ...],
        demand: Demand,
        refused: dict[DeploymentState, Refusal],
        lease: Lease | None,
        now: float,
    ) -> None:
        """Note the refusals of a reserve, but for quarantines that have no reason any more."""
        if self._reporter is not None:
            self._reporter.refused(send, refusals, now)
        try:
            for refusal in refusals:
                if refusal.cooldown is None or not await self.quarantines.reopen(refusal, now):
                    known = self.probes.hasten(refusal, now)
                    if isinstance(self._store, ProjectStore):
                        known = self._store.later(known, demand)
                    state = self._pool.note_refusal(known, now)
                    if state is not None:
                        refused[state] = known
                        if refusal.cooldown is not None:
                            heed(self._pool, state, refusal.cooldown)
        except BaseException:
            if lease is not None:  # not closed: the caller leaves the gate
                await self._give_back(lease.reservation_id, [lease.state], lease.probes)
            raise


def _passed_over(refusals: Iterable[Refusal]) -> tuple[PassedOver, ...]:
    # Not the refusals themselves: their deployments have secrets in them, and there may be thousands.
    return tuple(
        PassedOver(each.deployment.key.key_id, each.deployment.model, each.reason, each.retry_at)
        for each in itertools.islice(refusals, FIRST_CANDIDATES)
    )


class Lease:
    """Quota taken for one request; its holder must :meth:`close` it.

    Closing settles the reservation with what :meth:`settle_at` said, at the estimate if the request was sent
    and nothing more is known, or releases it if nothing was sent.

    Args:
        store: Keeps the reservation.
        reservation_id: Its id.
        state: The deployment that it is on.
        demand: What was reserved.
        gate: Held until the request is dispatched.
        on_return: Called with the state when quota came back early.
        decision: What the store decided.
        now: Seconds since the epoch.

    Attributes:
        probes: The half-open cooldowns that the request probes.
        is_dispatched: Whether the provider has said that the request is on its way.
        is_last: Whether it took the last of a quota, or tokens of which others lack some.
        headroom: Share (0 to 1) that remained of the tightest quota per minute once it was taken.
        daily_headroom: The same per day.
        passed_over: The first of those that were asked before in vain.
        correct: Called, once it is closed, with how many tokens more were used than reserved; or None.
    """

    __slots__ = (
        "_gate",
        "_on_return",
        "_store",
        "_used",
        "correct",
        "daily_headroom",
        "demand",
        "headroom",
        "is_dispatched",
        "is_last",
        "passed_over",
        "probes",
        "reservation_id",
        "state",
    )

    def __init__(
        self,
        store: RateLimitStore,
        reservation_id: str,
        state: DeploymentState,
        demand: Demand,
        gate: DispatchGate,
        on_return: Callable[[DeploymentState], None],
        decision: Decision,
        now: float,
    ) -> None:
        self._store = store
        self.probes = decision.probes
        self.headroom, self.daily_headroom = decision.headroom, decision.daily_headroom
        is_spent = decision.headroom <= state.spent_share or not decision.daily_headroom
        is_short = state.refusal is not None and state.lacks_tokens(now)
        self.is_last = demand is not _NOTHING and (is_spent or is_short)
        self._on_return = on_return
        self._gate: DispatchGate | None = gate
        self._used = _NOTHING
        self.reservation_id = reservation_id
        self.state = state
        self.demand = demand
        self.is_dispatched = False
        self.passed_over: tuple[PassedOver, ...] = ()
        self.correct: Callable[[int], None] | None = None

    def mark_sent(self) -> None:
        """Note that the request goes out now: from here on its quota may be used."""
        self._used = self.demand

    def mark_unsent(self) -> None:
        """Note that nothing reached the provider after all."""
        self._used = _NOTHING

    def mark_dispatched(self) -> None:
        """Note that the request is on its way: the next one may start. Harmless when called again."""
        gate, self._gate = self._gate, None
        self.is_dispatched = True
        if gate is not None:
            gate.leave()

    @property
    def used(self) -> Demand:
        """What :meth:`close` settles: nothing if nothing was sent."""
        return self._used

    def settle_at(self, tokens: int) -> None:
        """Note how many input tokens the provider counted."""
        demand = self.demand
        self._used = demand if tokens == demand.tokens else Demand(demand.requests, tokens)

    async def close(self) -> None:
        """Settle or release the reservation, to the end even if the caller is cancelled; call it once.

        A store that fails is not reported: the quota stays taken, and the reservation expires by itself.
        """
        if self._gate is not None:
            self.mark_dispatched()
        if self.correct is not None:
            self.correct(self._used.tokens - self.demand.tokens)
        try:
            await self._close()
        except asyncio.CancelledError:
            # Closing is idempotent: once more, and this time to the end.
            try:
                with suppress(Exception):
                    await finish(self._close())
            finally:
                self._return_quota()
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises: the answer is paid for
            note_failure(self._store, "release" if self._used is _NOTHING else "settle", error)
        else:
            self._return_quota()

    def _close(self) -> Coroutine[Any, Any, None]:
        if self._used is _NOTHING:
            return self._store.release(self.reservation_id)
        return self._store.settle(self.reservation_id, self._used)

    def _return_quota(self) -> None:
        """Report it if the deployment may have room before the time it is parked until."""
        if self._used is _NOTHING or (self._used.tokens < self.demand.tokens and self._is_waited_for()):
            self._on_return(self.state)

    def _is_waited_for(self) -> bool:
        """Return whether tokens were refused on the deployment, or on another one that shares them."""
        refusal = self.state.refusal
        if refusal is not None and refusal.reason in TOKEN_REASONS:
            return True
        store = self._store
        return isinstance(store, ProjectStore) and store.end_shortage(self.state.deployment)


def _demand(send: SendState, candidates: list[DeploymentState]) -> Demand:
    """Return what to reserve: the most that any of the models may count, since none is chosen yet."""
    order_groups = send.order.groups
    groups = order_groups if len(order_groups) == 1 else {state.group for state in candidates}
    tokens = 0.0
    for group in groups:
        needed = send.tokens[group.upstream] * group.corrections[send.kind].factor
        if needed > tokens:  # noqa: PLR1730 - three times as fast as max(), and in every send
            tokens = needed
    return Demand(1, round(tokens) or 1)


def _order_of(wish: Hashable) -> FallbackOrder:
    """Return the fallback order of those requests that share a line because they have this in common."""
    order = wish[0] if isinstance(wish, tuple) else wish
    assert isinstance(order, FallbackOrder)  # noqa: S101 - acquire() makes no other
    return order


def _ticket(send: SendState) -> Ticket:
    """Return the place of a request in line."""
    tenant = send.metadata.get("tenant", "") if send.tenant is None else send.tenant
    tokens = max(send.tokens.values(), default=1)
    again = 0 < len(send.attempts) <= _PLACES_KEPT
    return Ticket(send.urgency, tenant, tokens, counts=send.requests > 0, again=again)


def _charge(line: WaitingLine, ticket: Ticket, lease: Lease) -> None:
    """Count what was reserved as served to a tenant, and later what was really used."""
    line.charge(ticket, lease.demand.tokens)
    lease.correct = partial(line.charge, ticket)


_counter = itertools.count()
_prefix = secrets.token_hex(6)


def new_reservation_id() -> str:
    """Return an id that no other reservation of any process has."""
    return f"{_prefix}{next(_counter):x}"


def _after_fork() -> None:
    global _prefix  # noqa: PLW0603 - the child must not go on with its parent's ids
    _prefix = secrets.token_hex(6)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


PERMITS = 4
"""Most requests that may hold quota without being on the wire yet, once one has shown the way."""

_BEAT = 0.005
"""Most seconds by which the timers of an event loop that keeps up are late."""

_FADE = 0.9
"""How much of the event loop's lateness is remembered from one beat to the next."""


class DispatchGate:
    """Keeps the time short between taking quota and dispatching the request: lets a few through at a time.

    Quota that was taken now comes back a window (and the guard) from now; the provider counts from the moment
    the request arrives. The guard covers the network. It does not cover hundreds of requests that are granted
    in one tick of the event loop and then wait for each other, each building its request and its connection:
    so only a few may be between the two at a time, in order of arrival.

    The first goes alone: it finds everything cold, and those that came along would wait for it with their
    quota taken. Each that leaves adds a permit, up to :data:`PERMITS`.

    A request that waited longer than the grace is let through anyway: a few per beat where the path is slow,
    or the provider does not report dispatches. Where the event loop does not keep up it is one at a time, and
    only when nothing else moves: more requests under way would only make each of them slower.

    Args:
        clock: Where time comes from.
        grace: Seconds. The guard of the quotas is a good measure: beyond it the delay shows anyway.

    Attributes:
        busy: How many requests are between reservation and network.
        grace: As above.
    """

    def __init__(self, clock: Clock, grace: float) -> None:
        self.busy = 0
        self._clock = clock
        self._time = monotonic(clock)
        self.grace = grace
        self._permits = 1
        self._queue: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: Timer | None = None
        self._due = 0.0  # when the timer should go off
        self._lag = 0.0  # by how many seconds such timers have been late recently
        self._moved = False  # whether a request left since the last beat
        self._quiet_since = 0.0  # since when none left or was let through

    def try_enter(self) -> bool:
        """Enter if there is a permit and no request waits for it; return whether that was so."""
        if self.busy < self._permits and not self._queue:
            self.busy += 1
            return True
        return False

    async def enter(self) -> None:
        """Wait for a permit, or until the grace has passed; each entry must be left again."""
        if not self.try_enter():
            await self._wait()

    def leave(self) -> None:
        """Pass the permit on to the next in line."""
        self.busy -= 1
        self._moved = True
        if self._permits < PERMITS:
            self._permits += 1
        while self._queue and self.busy < self._permits:
            self._admit()

    def _admit(self) -> None:
        _, turn = self._queue.popleft()
        if not turn.done():  # else it was cancelled, and its task has not heard of it yet
            # Counted here and not when its task runs: no other request may slip in between.
            self.busy += 1
            turn.set_result(None)

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = self._time() + self.grace, turn
        self._queue.append(entry)
        if self._timer is None:
            self._moved = True
            self._set_timer()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
            elif not turn.cancelled():
                self.leave()
            raise
        finally:
            if not self._queue and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _set_timer(self) -> None:
        self._due = self._time() + _BEAT
        self._timer = self._clock.call_later(_BEAT, self._beat)

    def _beat(self) -> None:
        """Let requests through whose grace has passed, as many as does no harm."""
        now = self._time()
        self._lag = max(now - self._due, self._lag * _FADE)
        if self._moved:
            self._moved, self._quiet_since = False, now
        for _ in range(self._how_many(now)):
            if self._queue and self._queue[0][0] <= now:
                self._admit()
                self._quiet_since = now
        self._timer = None
        if self._queue:
            self._set_timer()

    def _how_many(self, now: float) -> int:
        if self._lag <= _BEAT:
            return PERMITS
        return 1 if now - self._quiet_since >= self.grace else 0
