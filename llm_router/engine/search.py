"""Beyond the shortlist: which deployments to ask next, and when the first one will have room."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from operator import attrgetter

from llm_router.engine.index import DeploymentState, FallbackOrder, Group, is_stale
from llm_router.engine.state import SendState
from llm_router.stores.base import Refusal
from llm_router.strategies.base import Candidate, SelectionStrategy

__all__ = [
    "FIRST_CANDIDATES",
    "MAX_CANDIDATES",
    "Either",
    "Unsuitable",
    "available_at",
    "cooled_down",
    "further",
    "lacking",
    "ranking",
    "retry_at",
    "soonest",
    "uncounted",
    "without_feature",
]

FIRST_CANDIDATES = 8
"""Most deployments that the first reserve of a request chooses from."""

MAX_CANDIDATES = 128
"""Most deployments that any reserve chooses from."""

_OVERLOADED = 2
"""Deployments of a model that are overloaded before another model is tried first."""

_GROWTH = 3
"""How many more are asked next for each that has refused: 8, 32, 128. A round trip costs as much as many of
them."""


def further(
    order: FallbackOrder,
    strategy: SelectionStrategy,
    time: Callable[[], float],
    refused: dict[DeploymentState, Refusal],
    skip: Container[DeploymentState] = (),
) -> Iterator[list[DeploymentState]]:
    """Yield further candidate lists after the shortlist was refused, until none is left that may have room.

    Ready deployments come first, best first, ever more at a time. Where they do not fill a list, parked ones
    do: quota may have been given back meanwhile, and only the store knows when *this* request fits, since a
    parked deployment wakes when the smallest request does. Those that wake after one that has refused has
    room again are left out.

    Args:
        order: The fallback order.
        strategy: Ranks the ready ones.
        time: Returns the seconds since the epoch.
        refused: The refusals so far. The caller adds those of each list; this function adds those that are
            known without asking.
        skip: Deployments to leave out; it may add those that it finds to ``refused``.
    """
    seen = Either(refused, skip) if skip else refused
    parked: list[DeploymentState] = []
    while True:
        now = time()
        wanted = FIRST_CANDIDATES + _GROWTH * len(refused)
        states = order.draw(strategy, now, min(wanted, MAX_CANDIDATES), seen)
        missing = min(wanted, MAX_CANDIDATES) - len(states)
        if missing > 0:
            parked = [state for state in parked if state.is_parked and state not in refused]
            parked = parked or _overlooked(order, now, wanted, refused, skip)
            states += order.arrange(parked[:missing])
        if not states:
            return
        yield states


class Unsuitable(Container[DeploymentState]):
    """The deployments that a request has reason to leave out.

    Args:
        send: The request.
        now: Seconds since the epoch.
        features: What it uses; None for what the request says.
    """

    __slots__ = ("_features", "_groups", "_now", "_projects")

    def __init__(self, send: SendState, now: float, features: frozenset[str] | None = None) -> None:
        overloaded = {group for group, count in send.overloaded.items() if count >= _OVERLOADED}
        self._groups = send.unfit | overloaded
        self._features = send.features if features is None else features
        self._projects = send.projects
        self._now = now

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, DeploymentState):
            return False
        if self._projects and item.deployment.key.project not in self._projects:
            return True
        until = item.features or {}
        return item.group in self._groups or any(until.get(name, 0.0) > self._now for name in self._features)


def without_feature(send: SendState, now: float) -> Iterator[tuple[DeploymentState, Refusal]]:
    """Yield the deployments that lack a feature of a request now, each with its refusal."""
    for group in send.order.groups if send.features else ():
        for state in () if group in send.unfit else group.states:
            ends, reason = lacking(state, send.features)
            if ends > now:
                yield state, Refusal(state.deployment, reason, ends, ends)


def lacking(state: DeploymentState, features: Iterable[str]) -> tuple[float, str]:
    """Return until when a deployment is to be left alone with one of the features of a request, and why."""
    until = state.features or {}
    ends, name = max((until.get(each, 0.0), each) for each in features)
    return ends, f"no {name} for now"


class Either(Container[DeploymentState]):
    """The union of two containers."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Container[DeploymentState], second: Container[DeploymentState]) -> None:
        self._first = first
        self._second = second

    def __contains__(self, item: object) -> bool:
        return item in self._first or item in self._second


def _overlooked(
    order: FallbackOrder,
    now: float,
    count: int,
    refused: dict[DeploymentState, Refusal],
    skip: Container[DeploymentState],
) -> list[DeploymentState]:
    """Return up to ``count`` parked deployments that were not asked, first to wake first.

    One that just refused another request, for a reason that holds for every request, is not asked again but
    added to ``refused``: where many requests are refused at once, each would ask every deployment.
    """
    overlooked: list[DeploymentState] = []
    before = retry_at(order, now, refused)
    for state in _parked(order):
        is_late = state.wakes_at >= before and before < math.inf
        # With nothing else in sight, even what is parked for ever is asked, since it may be lifted: so a
        # send is not refused before the store was asked.
        if len(overlooked) >= count or (is_late and (refused or overlooked)):
            break
        if state in refused or state.group.breaker.open_until > now:
            continue
        if state in skip:
            if state in refused:  # for the sake of the pace, which says when it is usable
                before = min(before, refused[state].retry_at)
            continue
        if is_late and (state.avoided_until > now or state.refusal is None or state.refusal.cooldown is None):
            continue
        known = state.refusal_for_all(now)
        if known is None:
            overlooked.append(state)
        else:
            refused[state] = known
            before = min(before, known.retry_at)
    return overlooked


def uncounted(
    order: FallbackOrder,
    strategy: SelectionStrategy,
    now: float,
    count: int,
    skip: Container[DeploymentState] = (),
) -> list[DeploymentState]:
    """Return deployments for a request that takes no quota, best first: also such as have none left."""
    states = order.draw(strategy, now, count, skip)
    parked = (each for each in _parked(order) if each not in skip and each.avoided_until <= now)
    return [*states, *itertools.islice(parked, max(count - len(states), 0))]


def cooled_down(
    order: FallbackOrder, refused: Iterable[DeploymentState], skip: Container[DeploymentState] = ()
) -> list[DeploymentState]:
    """Return a few deployments that were refused because of a cooldown: what another process may lift."""
    known = (state for state in itertools.chain(refused, _parked(order)) if state not in skip)
    looked_at = itertools.islice(known, MAX_CANDIDATES)
    cooled = (
        state for state in looked_at if state.refusal is not None and state.refusal.cooldown is not None
    )
    return list(dict.fromkeys(itertools.islice(cooled, FIRST_CANDIDATES)))


def retry_at(order: FallbackOrder, now: float, refused: Mapping[DeploymentState, Refusal]) -> float:
    """Return when the first deployment has room (seconds since the epoch), by what was refused so far.

    That is when the first of ``refused`` has room again; or, if this is earlier, when this process no longer
    avoids a deployment, or a circuit breaker is no longer open. ``math.inf`` stands for never.
    """
    earliest = min((refusal.retry_at for refusal in refused.values()), default=math.inf)
    for group in order.groups:
        if group.breaker.open_until > now:
            earliest = min(earliest, _available_at(group))
    if not any(group.avoided_until > now for group in order.groups):
        return earliest
    for state in _parked(order):
        if state.wakes_at >= earliest:
            break
        if state.avoided_until > now:
            return state.wakes_at
    return earliest


def available_at(order: FallbackOrder) -> float:
    """Return when the first deployment is ready (seconds since the epoch; the past if one is)."""
    return min(map(_available_at, order.groups), default=math.inf)


def _available_at(group: Group) -> float:
    wakes_at = -math.inf if group.ready else next((state.wakes_at for state in _parked_in(group)), math.inf)
    return max(wakes_at, group.breaker.open_until)


def soonest(order: FallbackOrder, count: int) -> list[DeploymentState]:
    """Return up to ``count`` parked deployments, those that wake first, in that order."""
    return list(itertools.islice(_parked(order), count))


def _parked(order: FallbackOrder) -> Iterator[DeploymentState]:
    """Yield the parked deployments as they wake; none may be parked or made ready meanwhile."""
    if len(order.groups) == 1:
        return _parked_in(order.groups[0])
    return heapq.merge(*map(_parked_in, order.groups), key=attrgetter("wakes_at"))


def _parked_in(group: Group) -> Iterator[DeploymentState]:
    # A heap need not be sorted for that: the k smallest entries lie among few of its nodes.
    parked, seen = group.parked, set[DeploymentState]()
    frontier = [(parked[0], 0)] if parked else []
    while frontier:
        entry, node = heapq.heappop(frontier)
        state = entry[2]
        if not is_stale(entry) and state not in seen:
            seen.add(state)
            yield state
        for child in (2 * node + 1, 2 * node + 2):
            if child < len(parked):
                heapq.heappush(frontier, (parked[child], child))


def ranking(order: FallbackOrder, strategy: SelectionStrategy, now: float) -> list[list[Candidate]]:
    """Return the ready deployments of each tier, best first, without moving anything.

    It is what :meth:`FallbackOrder.draw` would choose from, with neither cursors moved nor deployments woken;
    it looks at every deployment, and is meant for people who ask why.
    """
    return [
        list(strategy.order([each for step in tier for each in _candidates(step.groups, step.distance, now)]))
        for tier in order.tiers
    ]


def _candidates(groups: tuple[Group, ...], distance: int, now: float) -> list[Candidate]:
    ready = [
        state
        for group in groups
        if group.breaker.open_until <= now
        for state in group.states
        if not state.is_parked or state.wakes_at <= now
    ]
    ready.sort(key=lambda state: state.deployment.priority)
    return [Candidate(state.deployment, distance, state.headroom_at(now), state.failures) for state in ready]
