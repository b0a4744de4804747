"""The local index: which deployments are ready, and in which order a request looks at them.

It is cheap and possibly stale: the store decides. Drawing a shortlist looks at a handful of deployments,
however many there are: a ready one is found by its index in an array, a parked one by its rank in a heap.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import copy
from operator import itemgetter
from typing import ClassVar, Protocol, Self

import attrs

from llm_router.domain.deployment import OF_PROJECT, Deployment
from llm_router.domain.methods import GENERATE
from llm_router.domain.quota import MINUTE, TOKEN_METRICS, Refill
from llm_router.engine.overload import Overload
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Decision, Refusal
from llm_router.strategies.base import Candidate, SelectionStrategy

__all__ = [
    "TOKEN_REASONS",
    "DeploymentState",
    "FallbackOrder",
    "Group",
    "ReadyRing",
    "Ring",
    "Step",
    "is_stale",
]

TOKEN_REASONS = TOKEN_METRICS | {f"{metric}{OF_PROJECT}" for metric in TOKEN_METRICS}
"""The reasons of refusals for want of tokens."""

_FRESH = 0.1
"""Seconds for which a refusal that does not depend on the request's size is cached. Quota that another
process gives back early may be noticed that much later; what it lifts is noticed at once."""

_STALE_ENTRIES = 64
"""Heap entries of deployments that are no longer parked, kept before the heap may be compacted."""

_priority = itemgetter(0)

_numbers = itertools.count()
"""Numbers the entries of all heaps: a deployment may move from one to another."""


def _spent_share(deployment: Deployment) -> float:
    steady = (each for each in deployment.quotas if each.refill is Refill.STEADY and each.limit > 0)
    return max((1.0 - (each.capacity - 1) / each.limit for each in steady), default=0.0)


@attrs.define(eq=False)
class DeploymentState(Candidate):
    """What this process knows of one deployment.

    Attributes:
        group: The group that it is in.
        shard: The shard of the store that keeps it; 0 if the store has only one.
        ring_index: Its index in the ring of ready deployments, or -1 while it is parked.
        wakes_at: Seconds since the epoch until which it is parked (meaningful only while it is).
        parked_as: The number of the heap entry that says so.
        avoided_until: Seconds since the epoch until which only this process avoids it: the store does not
            know.
        refusal: Why it was parked, or last refused.
        refused_at: Seconds since the epoch at which the store said so; -inf if the store did not.
        features: Until when requests with a feature, by its name, avoid it (seconds since the epoch); None if
            none ever did.
        daily_headroom: Share (0 to 1) of its tightest daily quota that remained at the last grant.
        minute_headroom: The same for its other quotas, minus the time of that grant in minutes: quota is
            assumed to come back evenly over a minute, so this plus the present time estimates what remains.
        limits_due: Seconds since the epoch from when on an answer at the limit may raise it.
        spent_share: Share of its tightest quota per minute from which downwards none may be left for now: a
            steady quota gives less at once than its limit.
        starved: How often it was refused though nothing was admitted for a whole window; one less when a
            request that tries again is answered, but at least 1 then. So of keys that secretly share a quota,
            one soon gives way to the other.
    """

    group: Group = attrs.field(kw_only=True, repr=False)
    shard: int = attrs.field(default=0, kw_only=True)
    ring_index: int = attrs.field(default=-1, kw_only=True)
    wakes_at: float = attrs.field(default=0.0, kw_only=True)
    parked_as: int = attrs.field(default=-1, kw_only=True, repr=False)
    avoided_until: float = attrs.field(default=0.0, kw_only=True)
    refusal: Refusal | None = attrs.field(default=None, kw_only=True, repr=False)
    refused_at: float = attrs.field(default=-math.inf, kw_only=True)
    features: dict[str, float] | None = attrs.field(default=None, kw_only=True, repr=False)
    daily_headroom: float = attrs.field(default=1.0, init=False)
    minute_headroom: float = attrs.field(default=1.0, init=False)
    limits_due: float = attrs.field(default=0.0, init=False)
    spent_share: float = attrs.field(init=False)
    starved: int = attrs.field(default=0, init=False)

    @spent_share.default
    def _spent_share(self) -> float:
        return _spent_share(self.deployment)

    @property
    def is_parked(self) -> bool:
        """Whether it is set aside in the local index."""
        return self.ring_index < 0

    def observe(self, decision: Decision, now: float) -> None:
        """Note what remained of its quotas when the store granted a request."""
        self.daily_headroom = decision.daily_headroom
        self.minute_headroom = decision.headroom - now / MINUTE

    def headroom_at(self, now: float) -> float:
        """Estimate the share (0 to 1) that remains of its tightest quota."""
        return min(self.minute_headroom + now / MINUTE, self.daily_headroom)

    def note(self, refusal: Refusal, at: float = -math.inf) -> None:
        """Note why it is unusable, and when the store said so; by default the store did not."""
        self.refusal, self.refused_at = refusal, at

    def lacks_tokens(self, now: float) -> bool:
        """Return whether requests wait for its tokens: of these, hardly ever exactly all are taken."""
        refusal = self.refusal
        return refusal is not None and refusal.reason in TOKEN_REASONS and now - self.refused_at < MINUTE

    def refusal_for_all(self, now: float) -> Refusal | None:
        """Return the store's latest refusal if it is fresh and would be the same for any request."""
        refusal = self.refusal
        if refusal is None or not 0 <= now - self.refused_at < _FRESH or refusal.reason in TOKEN_REASONS:
            return None
        return refusal


class Ring(Protocol):
    """The ready deployments of one group and priority."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def add(self, state: DeploymentState) -> None:
        """Add a deployment that is ready."""
        ...

    def remove(self, state: DeploymentState) -> None:
        """Remove a deployment that is in the ring."""
        ...

    def draw(self, count: int, skip: Container[DeploymentState] = ()) -> list[DeploymentState]:
        """Return up to ``count`` deployments that are not in ``skip``; the next draw starts further on."""
        ...

    def copy(self, twins: Mapping[DeploymentState, DeploymentState]) -> Ring:
        """Return a ring of the twins of its deployments, to try out what a draw would return."""
        ...


class ReadyRing:
    """An array with a cursor that moves on with every draw, so that each deployment gets its turn."""

    __slots__ = ("cursor", "states")

    def __init__(self) -> None:
        self.states: list[DeploymentState] = []
        self.cursor = random.randrange(1 << 30)  # noqa: S311 - keeps processes from starting alike

    def __len__(self) -> int:
        return len(self.states)

    def add(self, state: DeploymentState) -> None:
        """Add a deployment that is ready."""
        state.ring_index = len(self.states)
        self.states.append(state)

    def remove(self, state: DeploymentState) -> None:
        """Remove a deployment; the last one moves into the gap, so the array stays dense."""
        last = self.states.pop()
        if last is not state:
            self.states[state.ring_index] = last
            last.ring_index = state.ring_index
        state.ring_index = -1

    def draw(self, count: int, skip: Container[DeploymentState] = ()) -> list[DeploymentState]:
        """Return up to ``count`` deployments, starting one further than the last time.

        With ``skip``, the next draw starts behind those that were looked at.
        """
        states = self.states
        size = len(states)
        start = self.cursor = (self.cursor + 1) % size
        if start + count <= size:
            drawn = states[start : start + count]
        else:
            drawn = states[start:] + states[: min(start, start + count - size)]
        if not skip:
            return drawn
        drawn = [state for state in drawn if state not in skip]
        self.cursor += count - 1
        if len(drawn) < count < size:  # some of these are skipped, but others in the ring may not be
            drawn = [state for state in states if state not in skip]
        return drawn[:count]

    def copy(self, twins: Mapping[DeploymentState, DeploymentState]) -> ReadyRing:
        """Return a ring of the twins of its deployments, whose next draw is the same."""
        ring = copy(self)
        ring.states = [twins[state] for state in self.states]
        return ring


class Group:
    """The deployments of one (provider, workload, model, methods): rings of ready and a heap of parked ones.

    Args:
        upstream: The provider.
        workload: The workload.
        model: The model.
        methods: What the model can be asked for.
        make_ring: Makes a ring; a store with several shards needs another kind.

    Attributes:
        states: All its deployments.
        ready: (priority, ring) of each ring that is not empty, lowest priority number first.
        parked: A heap of (until, sequence, state); entries of deployments that woke early stay for a while.
        avoided_until: Seconds since the epoch at which the last ``avoided_until`` of its deployments ends.
        breaker: The provider's circuit breaker.
        corrections: The model's corrections of token estimates, by kind of content.
        overload: Whether the model is out of service.
    """

    __slots__ = (
        "_make_ring",
        "_rings",
        "avoided_until",
        "breaker",
        "corrections",
        "methods",
        "model",
        "overload",
        "parked",
        "ready",
        "states",
        "upstream",
        "workload",
    )

    def __init__(
        self,
        upstream: Upstream,
        workload: str,
        model: str,
        make_ring: Callable[[], Ring] = ReadyRing,
        methods: frozenset[str] = frozenset({GENERATE}),
    ) -> None:
        self.upstream = upstream
        self.workload = workload
        self.model = model
        self.methods = methods
        self.breaker = upstream.breaker
        self.corrections = upstream.corrections(model)
        self.overload = Overload()
        self.states: list[DeploymentState] = []
        self.ready: list[tuple[int, Ring]] = []
        self.parked: list[tuple[float, int, DeploymentState]] = []
        self.avoided_until = 0.0
        self._make_ring = make_ring
        self._rings: dict[int, Ring] = {}

    def add(self, deployment: Deployment, shard: int = 0) -> DeploymentState:
        """Add a deployment, ready."""
        state = DeploymentState(deployment, 0, 1.0, 0, group=self, shard=shard)
        self.states.append(state)
        self._make_ready(state)
        return state

    def park(self, state: DeploymentState, until: float) -> bool:
        """Park a deployment until ``until``, unless it is parked for longer; return whether it was not."""
        if not state.is_parked:
            self._remove_ready(state)
        elif until <= state.wakes_at:
            return False
        state.wakes_at = until
        if len(self.parked) > 2 * len(self.states) + _STALE_ENTRIES:
            self.parked = [entry for entry in self.parked if not is_stale(entry)]
            heapq.heapify(self.parked)
        state.parked_as = next(_numbers)
        heapq.heappush(self.parked, (until, state.parked_as, state))
        return True

    def rouse(self, state: DeploymentState) -> None:
        """Make a parked deployment ready before its time."""
        if state.is_parked:
            self._make_ready(state)

    def wake(self, now: float) -> None:
        """Make every deployment ready whose time has come."""
        parked = self.parked
        while parked and (parked[0][0] <= now or is_stale(parked[0])):
            entry = heapq.heappop(parked)
            if not is_stale(entry):
                self._make_ready(entry[2])

    def take_over(self, state: DeploymentState, deployment: Deployment) -> None:
        """Take a deployment from its group, as ready or parked as it is there, and on other terms.

        Whoever moves deployments sees to the ``states`` of both groups.
        """
        was_parked = state.is_parked
        state.group.give_up(state)
        state.group, state.deployment = self, deployment
        state.spent_share = _spent_share(deployment)
        self.avoided_until = max(self.avoided_until, state.avoided_until)
        if was_parked:
            until, state.wakes_at = state.wakes_at, -math.inf
            self.park(state, until)
        else:
            self._make_ready(state)

    def give_up(self, state: DeploymentState) -> None:
        """Have a deployment be neither ready nor parked here."""
        if not state.is_parked:
            self._remove_ready(state)
        state.parked_as = -1  # its entry in the heap, if there is one, means nothing any more

    def alone(self) -> Group:
        """Return an empty group of the same kind, which no request looks at."""
        return Group(self.upstream, self.workload, self.model, self._make_ring, self.methods)

    def copy(self) -> Group:
        """Return a copy with deployments of its own, to try out what a draw would return.

        Only what belongs to the provider is shared: its circuit breaker and the corrections of estimates.
        """
        group = Group(self.upstream, self.workload, self.model, self._make_ring, self.methods)
        twins = {state: copy(state) for state in self.states}
        for twin in twins.values():
            twin.group = group
        group.states = list(twins.values())
        group._rings = {priority: ring.copy(twins) for priority, ring in self._rings.items()}
        group.ready = [(priority, group._rings[priority]) for priority, _ in self.ready]
        # Entries that mean nothing any more may be of deployments that a reload has taken away.
        group.parked = [(*entry[:2], twins[entry[2]]) for entry in self.parked if not is_stale(entry)]
        heapq.heapify(group.parked)
        group.avoided_until = self.avoided_until
        return group

    def _make_ready(self, state: DeploymentState) -> None:
        priority = state.deployment.priority
        ring = self._rings.get(priority)
        if ring is None:
            ring = self._rings[priority] = self._make_ring()
        if not len(ring):
            insort(self.ready, (priority, ring), key=_priority)
        ring.add(state)

    def _remove_ready(self, state: DeploymentState) -> None:
        priority = state.deployment.priority
        ring = self._rings[priority]
        ring.remove(state)
        if not len(ring):
            del self.ready[bisect_left(self.ready, priority, key=_priority)]


def is_stale(entry: tuple[float, int, DeploymentState]) -> bool:
    """Whether a heap entry no longer says until when its deployment is parked."""
    _, number, state = entry
    return not state.is_parked or state.parked_as != number


@attrs.define(eq=False)
class Step:
    """The groups of a tier whose workloads are equally far from the one asked for.

    Attributes:
        distance: How far, in workloads.
        groups: The groups.
        turn: Which of them comes first in a draw, so that each gets its turn.
    """

    distance: int
    groups: tuple[Group, ...]
    turn: int = 0

    def draw(self, count: int, now: float, skip: Container[DeploymentState] = ()) -> list[DeploymentState]:
        """Return ready deployments, lower priority numbers first, until there are ``count`` or no more.

        A provider whose circuit breaker is open has none.
        """
        rings: Iterable[tuple[int, Ring]]
        if len(self.groups) == 1:
            group = self.groups[0]
            rings = group.ready if group.breaker.open_until <= now else ()
        else:
            turn = self.turn = (self.turn + 1) % len(self.groups)
            in_turn = self.groups[turn:] + self.groups[:turn]
            closed = (group.ready for group in in_turn if group.breaker.open_until <= now)
            rings = heapq.merge(*closed, key=_priority)
        drawn: list[DeploymentState] = []
        minutes, distance = now / MINUTE, self.distance
        for _, ring in rings:
            states = ring.draw(count, skip)
            for state in states:  # headroom_at(now), written out: it runs eight times in every send
                headroom, daily = state.minute_headroom + minutes, state.daily_headroom
                if headroom > daily:  # noqa: PLR1730 - a third of the time of min()
                    headroom = daily
                state.headroom, state.load, state.distance = headroom, state.failures - headroom, distance
            drawn += states
            if len(drawn) >= count:
                break
        return drawn


@attrs.define(eq=False)
class FallbackOrder:
    """Where a request looks for a deployment: the tiers of one (workload, model, fallback), best first.

    No group is in two tiers. Requests on their way keep their order, whose tiers change when the pool does.

    Attributes:
        workload: The workload asked for, or None.
        tiers: The tiers, each a tuple of steps, the nearest workload first.
        groups: All groups, in that order; empty once a reload has left none.
        upstreams: The providers that its requests were made for; they never change.
    """

    workload: str | None
    tiers: tuple[tuple[Step, ...], ...]
    groups: tuple[Group, ...]
    upstreams: tuple[Upstream, ...]

    is_sharded: ClassVar[bool] = False
    """Whether :meth:`arrange` changes anything."""

    def draw(
        self, strategy: SelectionStrategy, now: float, count: int, skip: Container[DeploymentState] = ()
    ) -> list[DeploymentState]:
        """Return up to ``count`` ready deployments that are not in ``skip``, best first.

        Drawing wakes parked deployments whose time has come, and moves the cursors on.
        """
        for group in self.groups:
            if group.parked:
                group.wake(now)
        chosen: list[DeploymentState] = []
        for tier in self.tiers:
            drawn: list[DeploymentState] = []
            for step in tier:
                drawn += step.draw(count, now, skip)
                if len(drawn) >= count:
                    break
            if drawn:
                ordered = strategy.order(drawn)
                chosen += self.arrange(ordered) if self.is_sharded else ordered  # type: ignore[arg-type]  # states
                if len(chosen) >= count:
                    return chosen[:count]
        return chosen

    def arrange(self, states: Sequence[DeploymentState]) -> Sequence[DeploymentState]:
        """Return states of one tier in the order in which a store should be asked; here, as they are."""
        return states

    def copy(self) -> Self:
        """Return a copy of the order and its groups; what is drawn from it moves nothing in this one."""
        groups = {group: group.copy() for group in self.groups}
        tiers = tuple(
            tuple(
                Step(step.distance, tuple(groups[group] for group in step.groups), step.turn) for step in tier
            )
            for tier in self.tiers
        )
        return attrs.evolve(self, tiers=tiers, groups=tuple(groups.values()))

    @property
    def size(self) -> int:
        """How many deployments it covers."""
        return sum(len(group.states) for group in self.groups)
