"""The cooldowns that a store has not been told of, and the limits that this process knows of."""

from __future__ import annotations

import math

import attrs

from llm_router.domain.calendar import microseconds
from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.deployment import Scope
from llm_router.domain.quota import Metric
from llm_router.stores.ledger import impose

__all__ = ["KnownCooldowns", "UntoldCooldowns"]


class KnownCooldowns:
    """What cools down as far as this process was told, and what was learnt with it.

    Attributes:
        learnt: The limits learnt for each scope of a model, and when each ends (seconds since the epoch).
    """

    def __init__(self) -> None:
        self.learnt: dict[Scope, dict[Metric, tuple[int, float]]] = {}
        self._cooldowns: dict[Scope, Cooldown] = {}

    def add(self, cooldown: Cooldown, now: float) -> None:
        """Note a cooldown, or that one was lifted."""
        kept = impose(self._cooldowns.pop(cooldown.scope, None), cooldown, microseconds(now))
        if kept is not None:
            self._cooldowns[cooldown.scope] = attrs.evolve(kept, learnt=())
        if cooldown.learnt:
            limits = self.learnt.setdefault(cooldown.scope, {})
            for entry in cooldown.learnt:
                limits.pop(entry.metric, None)
                if entry.limit is not None:
                    limits[entry.metric] = entry.limit, now + LEARNT_FOR

    def in_force(self, now: float) -> list[Cooldown]:
        """Return what cools down now, and forget the rest."""
        self._cooldowns = {scope: c for scope, c in self._cooldowns.items() if c.until > now}
        for scope, limits in list(self.learnt.items()):
            left = {metric: entry for metric, entry in limits.items() if entry[1] > now}
            if left:
                self.learnt[scope] = left
            else:
                del self.learnt[scope]
        return list(self._cooldowns.values())


class UntoldCooldowns:
    """The cooldowns that a store is to be told of when it answers again, in their order.

    At most a few of a scope are kept, since one that ends later takes the place of another. What was learnt
    with one that was replaced is kept.
    """

    def __init__(self) -> None:
        self._by_scope: dict[Scope, list[Cooldown]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_scope)

    def add(self, cooldown: Cooldown) -> None:
        """Note one more."""
        scope = cooldown.scope
        untold = self._by_scope.setdefault(scope, [])
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
        """Return the one to tell next."""
        return next((untold[0] for untold in self._by_scope.values()), None)

    def told(self, cooldown: Cooldown) -> None:
        """Forget one that the store was told of; another one in its place stays."""
        untold = self._by_scope.get(cooldown.scope, [])
        untold[:] = [each for each in untold if each is not cooldown]
        if not untold:
            self._by_scope.pop(cooldown.scope, None)


def _is_plain(cooldown: Cooldown) -> bool:
    return cooldown.until > 0.0


def _merged(*cooldowns: Cooldown) -> tuple[LearntLimit, ...]:
    limits = {entry.metric: entry for cooldown in cooldowns for entry in cooldown.learnt}
    return tuple(limits.values())
