"""The cooldowns that this process knows of, and those that a store has not been told of."""

from __future__ import annotations

import math

import attrs

from llm_router.domain.calendar import microseconds
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Scope
from llm_router.stores.ledger import impose

__all__ = ["KnownCooldowns", "UntoldCooldowns", "as_of"]


class KnownCooldowns:
    """What cools down as far as this process was told."""

    def __init__(self) -> None:
        self._cooldowns: dict[Scope, Cooldown] = {}

    def add(self, cooldown: Cooldown, now: float) -> None:
        """Note a cooldown, or that one was lifted."""
        kept = impose(self._cooldowns.pop(cooldown.scope, None), cooldown, microseconds(now))
        if kept is not None:
            self._cooldowns[cooldown.scope] = attrs.evolve(kept, learnt=())

    def in_force(self, now: float) -> list[Cooldown]:
        """Return what cools down now, and forget the rest."""
        self._cooldowns = {scope: c for scope, c in self._cooldowns.items() if c.until > now}
        return list(self._cooldowns.values())


class UntoldCooldowns:
    """The cooldowns that a store is to be told of when it answers again, in their order.

    At most a few of a scope are kept, since one that ends later takes the place of another. What was learnt
    with one that was replaced is kept; of each metric only what was learnt last, which is told once.
    """

    def __init__(self) -> None:
        self._by_scope: dict[Scope, list[Cooldown]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_scope)

    def add(self, cooldown: Cooldown, now: float) -> None:
        """Note one more; ``now`` is in seconds since the epoch."""
        cooldown = _delayed(cooldown, now)
        untold = self._by_scope.setdefault(cooldown.scope, [])
        untold[:] = [_without(each, cooldown.learnt) for each in untold]
        last = untold[-1] if untold else None
        if cooldown.until == -math.inf:
            # What was learnt before stays, unless it is lifted as well.
            untold[:] = [attrs.evolve(cooldown, learnt=_merged(*untold, cooldown))]
        elif last is not None and _is_plain(last) and _is_plain(cooldown):
            later = max(last, cooldown, key=lambda each: each.until)
            untold[-1] = attrs.evolve(later, learnt=_merged(last, cooldown))
        elif len(untold) > 1 and _is_plain(cooldown) and _is_plain(untold[-2]):  # a retry between two
            untold[-2:] = [attrs.evolve(cooldown, learnt=_merged(*untold[-2:], cooldown))]
        elif cooldown != last:
            untold.append(cooldown)

    def first(self) -> Cooldown | None:
        """Return the one to tell next; see :func:`as_of`."""
        return next((untold[0] for untold in self._by_scope.values()), None)

    def told(self, cooldown: Cooldown) -> None:
        """Forget one that the store was told of; another one in its place stays."""
        untold = self._by_scope.get(cooldown.scope, [])
        untold[:] = [each for each in untold if each is not cooldown]
        if not untold:
            self._by_scope.pop(cooldown.scope, None)


def as_of(cooldown: Cooldown, now: float) -> Cooldown:
    """Return a cooldown from :meth:`UntoldCooldowns.first` as it is to be told at ``now``.

    Its limits rise when they were to, however long the store was away: as they are kept, ``raise_after`` is
    a time, in seconds since the epoch.
    """
    return _delayed(cooldown, -now)


def _delayed(cooldown: Cooldown, by: float) -> Cooldown:
    if all(entry.raise_after == math.inf for entry in cooldown.learnt):
        return cooldown
    learnt = (attrs.evolve(entry, raise_after=entry.raise_after + by) for entry in cooldown.learnt)
    return attrs.evolve(cooldown, learnt=tuple(learnt))


def _without(cooldown: Cooldown, replaced: tuple[LearntLimit, ...]) -> Cooldown:
    """Return a cooldown without the limits that others replace."""
    metrics = {entry.metric for entry in replaced}
    left = tuple(entry for entry in cooldown.learnt if entry.metric not in metrics)
    return cooldown if len(left) == len(cooldown.learnt) else attrs.evolve(cooldown, learnt=left)


def _is_plain(cooldown: Cooldown) -> bool:
    return cooldown.until > 0.0


def _merged(*cooldowns: Cooldown) -> tuple[LearntLimit, ...]:
    limits = {entry.metric: entry for cooldown in cooldowns for entry in cooldown.learnt}
    return tuple(limits.values())
