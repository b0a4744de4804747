"""Take quota for a request on the best deployment with room, or wait in line for some."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Container, Hashable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from operator import attrgetter

from llm_router.domain.clock import Clock, monotonic
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.quota import Demand
from llm_router.domain.response import PassedOver
from llm_router.domain.wording import seconds_words
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
from llm_router.engine.gate import DispatchGate
from llm_router.engine.index import DeploymentState, FallbackOrder
from llm_router.engine.lease import NOTHING, Lease, new_reservation_id
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

__all__ = ["Selector"]

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

    def tokens_returned(self, state: DeploymentState) -> None:
        """Note that tokens of a deployment came back, as nearly every answer gives some back."""
        if self._pool.return_tokens_of(state, self._clock.time()):
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
        if not self._pool.again_from <= now < self._pool.again_at:
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
            again = f"retry in {seconds_words(seconds)}"
            raise QuotaExhaustedError(
                f"this process sends no faster than max_requests_per_second allows: {again}",
                retry_after=seconds,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RouterClosedError("this router was closed before the request was sent")

    async def _ask(
        self, send: SendState, candidates: list[DeploymentState], refused: dict[DeploymentState, Refusal]
    ) -> Lease | None:
        demand = _demand(send, candidates) if send.requests else NOTHING
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
            lease = Lease(self._store, reservation_id, granted, demand, self._gate, self, decision, now)
        if decision.refusals:
            await self._note_refusals(send, decision, returns, demand, refused, lease, now)
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
        decision: Decision,
        asked: int,
        demand: Demand,
        refused: dict[DeploymentState, Refusal],
        lease: Lease | None,
        now: float,
    ) -> None:
        """Note the refusals of a reserve, but for quarantines that have no reason any more."""
        refusals = self._pool.as_of_now(decision.refusals, asked, now)
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
            if refusals is not decision.refusals:
                self.look_again()
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
