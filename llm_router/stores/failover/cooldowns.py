"""The cooldowns that this process knows of, and those that a store has not been told of."""

from __future__ import annotations

import math

import attrs

from llm_router.domain.calendar import microseconds
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Scope
from llm_router.stores.failover.times import STEP, Times
from llm_router.stores.ledger import impose

__all__ = ["KnownCooldowns", "UntoldCooldown", "UntoldCooldowns"]


class KnownCooldowns:
    """What cools down as far as this process was told.

    Args:
        times: The source of time.
    """

    def __init__(self, times: Times) -> None:
        self._times = times
        self._cooldowns: dict[Scope, tuple[Cooldown, float]] = {}  # with how far the clock was ahead then

    def add(self, cooldown: Cooldown) -> None:
        """Note a cooldown, or that one was lifted."""
        wall, ahead = self._times.wall(), self._times.ahead()
        present, since = self._cooldowns.pop(cooldown.scope, (None, ahead))
        if present is not None:
            present = _moved_back(present, ahead - since)
        kept = impose(present, cooldown, microseconds(wall))
        if kept is not None:
            self._cooldowns[cooldown.scope] = attrs.evolve(kept, learnt=()), ahead

    def in_force(self) -> list[Cooldown]:
        """Return what cools down now, and forget the rest."""
        wall, ahead = self._times.wall(), self._times.ahead()
        now = {scope: _moved_back(c, ahead - since) for scope, (c, since) in self._cooldowns.items()}
        self._cooldowns = {scope: kept for scope, kept in self._cooldowns.items() if now[scope].until > wall}
        return [now[scope] for scope in self._cooldowns]


@attrs.frozen(eq=False)
class UntoldCooldown:
    """A cooldown that the store is to be told of.

    Attributes:
        cooldown: It, with steady times (see :class:`Times`) as ``raise_after`` of its limits.
        ahead: How far the time of day was ahead of the steady time when it began.
    """

    cooldown: Cooldown
    ahead: float

    def as_of_now(self, times: Times) -> Cooldown:
        """Return it as it is to be told now.

        Its limits rise when they were to, however long the store was away. If the clock was set back, it ends
        as much earlier.
        """
        return _moved_back(_delayed(self.cooldown, -times.now()), times.ahead() - self.ahead)


class UntoldCooldowns:
    """The cooldowns that a store is to be told of when it answers again, in their order.

    At most a few of a scope are kept, since one that ends later takes the place of another. What was learnt
    with one that was replaced is kept; of each metric only what was learnt last, which is told once.

    Args:
        times: The source of time.
    """

    def __init__(self, times: Times) -> None:
        self._times = times
        self._by_scope: dict[Scope, list[UntoldCooldown]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_scope)

    def add(self, cooldown: Cooldown) -> None:
        """Note one more."""
        cooldown = _delayed(cooldown, self._times.now())
        new = UntoldCooldown(cooldown, self._times.ahead())
        untold = self._by_scope.setdefault(cooldown.scope, [])
        untold[:] = [_without(each, cooldown.learnt) for each in untold]
        last = untold[-1] if untold else None
        if cooldown.until == -math.inf:
            # What was learnt before stays, unless it is lifted as well.
            untold[:] = [_learning(new, *untold, new)]
        elif last is not None and _is_plain(last) and _is_plain(new):
            later = max(last, new, key=lambda each: each.as_of_now(self._times).until)
            untold[-1] = _learning(later, last, new)
        elif len(untold) > 1 and _is_plain(new) and _is_plain(untold[-2]):  # a retry between two
            untold[-2:] = [_learning(new, *untold[-2:], new)]
        elif last is None or cooldown != last.cooldown:
            untold.append(new)

    def first(self) -> UntoldCooldown | None:
        """Return the one to tell next."""
        return next((untold[0] for untold in self._by_scope.values()), None)

    def told(self, cooldown: UntoldCooldown) -> None:
        """Forget one that the store was told of; another one in its place stays."""
        scope = cooldown.cooldown.scope
        untold = self._by_scope.get(scope, [])
        untold[:] = [each for each in untold if each is not cooldown]
        if not untold:
            self._by_scope.pop(scope, None)


def _delayed(cooldown: Cooldown, by: float) -> Cooldown:
    if all(entry.raise_after == math.inf for entry in cooldown.learnt):
        return cooldown
    learnt = (attrs.evolve(entry, raise_after=entry.raise_after + by) for entry in cooldown.learnt)
    return attrs.evolve(cooldown, learnt=tuple(learnt))


def _moved_back(cooldown: Cooldown, step: float) -> Cooldown:
    """Return a cooldown that began before the clock was set by so many seconds: if back, it ends earlier."""
    if step >= -STEP or not 0.0 < cooldown.until < math.inf:
        return cooldown
    return attrs.evolve(cooldown, until=cooldown.until + step)


def _without(untold: UntoldCooldown, replaced: tuple[LearntLimit, ...]) -> UntoldCooldown:
    """Return one without the limits that others replace."""
    metrics = {entry.metric for entry in replaced}
    cooldown = untold.cooldown
    left = tuple(entry for entry in cooldown.learnt if entry.metric not in metrics)
    return untold if len(left) == len(cooldown.learnt) else _with(untold, left)


def _is_plain(untold: UntoldCooldown) -> bool:
    return untold.cooldown.until > 0.0


def _learning(untold: UntoldCooldown, *others: UntoldCooldown) -> UntoldCooldown:
    """Return one with what was learnt with others: of each metric what was learnt last."""
    limits = {entry.metric: entry for each in others for entry in each.cooldown.learnt}
    return _with(untold, tuple(limits.values()))


def _with(untold: UntoldCooldown, learnt: tuple[LearntLimit, ...]) -> UntoldCooldown:
    return attrs.evolve(untold, cooldown=attrs.evolve(untold.cooldown, learnt=learnt))
