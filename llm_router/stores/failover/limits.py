"""The learnt limits that this process knows of."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from llm_router.domain.calendar import microseconds
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.limits import LearntLimit
from llm_router.domain.quota import Metric
from llm_router.stores.base import DeploymentSnapshot
from llm_router.stores.ledger import StoredLimit, learn

__all__ = ["KnownLimits"]

_EVERY = 60.0
"""Seconds between two looks at what the store knows of a model."""

_AT_ONCE = 32
"""Models that are looked at together, so that other calls need not wait for long."""


class KnownLimits:
    """The limits that this process learnt, and those that the store showed it.

    The store says when it learnt a limit, which identifies it. What this process learns on its own has other
    times, so it remembers the one in the store that is to be replaced.

    Attributes:
        learnt: The limits of each scope of a model. What a scope has is replaced, never changed.
        changes: How often limits were learnt.
    """

    def __init__(self) -> None:
        self.learnt: dict[Scope, dict[Metric, StoredLimit]] = {}
        self.changes = 0
        self._in_store: dict[tuple[Scope, Metric], float] = {}
        self._looked_at: dict[Scope, float] = {}

    def unseen(self, deployments: Iterable[Deployment], now: float) -> list[Deployment]:
        """Return a few that the store has not shown for a minute, which they are taken to be now.

        ``now`` is a steady time, in seconds; what is learnt goes by the time of day.
        """
        self._looked_at = {scope: at for scope, at in self._looked_at.items() if now - _EVERY < at <= now}
        due = {each.model_scope: each for each in deployments if each.model_scope not in self._looked_at}
        unseen = list(due.values())[:_AT_ONCE]
        self.looked_at(unseen, now)
        return unseen

    def looked_at(self, deployments: Iterable[Deployment], now: float) -> None:
        """Note that the store showed these at a steady time."""
        self._looked_at.update((each.model_scope, now) for each in deployments)

    def learn(self, cooldown: Cooldown, wall: float) -> tuple[LearntLimit, ...]:
        """Learn the limits of a cooldown; return those that count, to tell the store if it does not answer.

        In the store they replace the limit that was there as far as this process knows: the one that the
        store showed last, none if it showed none, any if this process has changed it since.
        """
        if not cooldown.learnt:
            return ()
        scope, told = cooldown.scope, []
        limits = dict(self.learnt.get(scope, {}))
        for entry in cooldown.learnt:
            present = limits.pop(entry.metric, None)
            kept = learn(present, entry, microseconds(wall))
            if kept is not None:
                limits[entry.metric] = kept
            if entry.replaces is None:
                self._in_store.pop((scope, entry.metric), None)
                told.append(entry)
            elif kept is not present:
                told.append(attrs.evolve(entry, replaces=self._stored(scope, entry.metric, present)))
        self.changes += 1
        self._put(scope, limits)
        return tuple(told)

    def _stored(self, scope: Scope, metric: Metric, present: StoredLimit | None) -> float | None:
        """Return when the store learnt its limit: 0 for none, None for unknown."""
        if present is None:
            return self._in_store.setdefault((scope, metric), 0.0)
        return self._in_store.get((scope, metric))

    def told(self, cooldown: Cooldown) -> None:
        """Note that the store was told of a cooldown: when it learnt the limits is not known."""
        for entry in cooldown.learnt:
            self._in_store.pop((cooldown.scope, entry.metric), None)

    def see(self, snapshots: Iterable[DeploymentSnapshot]) -> None:
        """Note what the store knows of the limits of some deployments."""
        for snapshot in snapshots:
            scope = snapshot.deployment.model_scope
            records = {quota.metric: quota.learnt for quota in snapshot.quotas if quota.learnt is not None}
            if not records and scope not in self.learnt:
                continue
            for metric in Metric:
                self._in_store.pop((scope, metric), None)
                if metric in records:
                    self._in_store[scope, metric] = records[metric].learnt_at
            self._put(scope, {metric: StoredLimit.of(record) for metric, record in records.items()})

    def forget(self, wall: float) -> None:
        """Forget the limits that are over."""
        moment = microseconds(wall)
        for scope, limits in list(self.learnt.items()):
            left = {metric: entry for metric, entry in limits.items() if entry.until > moment}
            if len(left) < len(limits):
                self._put(scope, left)

    def _put(self, scope: Scope, limits: dict[Metric, StoredLimit]) -> None:
        if limits:
            self.learnt[scope] = limits
        else:
            self.learnt.pop(scope, None)
