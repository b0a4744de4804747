"""What the store showed last of the room in each quota: on its own, a process takes its share of that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llm_router.domain.deployment import Scope
from llm_router.domain.quota import MINUTE, TOKEN_METRICS, Demand, Metric
from llm_router.stores.base import CHARGES_KEPT, DeploymentSnapshot, Refusal
from llm_router.stores.failover.times import Times

__all__ = ["Room", "Rooms"]


class Room(NamedTuple):
    """What was left of one quota, at most.

    Attributes:
        at: When the store showed it; a steady time (see :class:`Times`).
        left: Requests or tokens.
        until: Until when nothing comes back, if nothing was left.
    """

    at: float
    left: int
    until: float


class Rooms:
    """The room that refusals and snapshots showed. What a grant showed is kept with the takings.

    Args:
        times: The source of time.
    """

    def __init__(self, times: Times) -> None:
        self._times = times
        self._by_metric: dict[str, dict[Scope, Room]] = {metric.value: {} for metric in Metric}

    def get(self, metric: Metric, scope: Scope) -> Room | None:
        """Return what was shown last of a quota, or None."""
        return self._by_metric[metric.value].get(scope)

    def note_refusals(self, refusals: Iterable[Refusal], demand: Demand) -> None:
        """Note that there was no room for a demand just now."""
        now, ahead = self._times.now(), self._times.ahead()
        for refusal in refusals:
            rooms = self._by_metric.get(refusal.reason)
            if rooms is None:  # a cooldown refused it, or nothing is known
                continue
            scope = refusal.deployment.model_scope
            known = rooms.get(scope)
            if known is not None and known.until > now >= known.at:
                continue  # nothing has come back since: what it holds is as old as it was
            wake_at = refusal.wake_at - ahead
            if wake_at > now:
                rooms[scope] = Room(now, 0, wake_at)
            else:  # there was some, but less than this
                left = demand.tokens if refusal.reason in TOKEN_METRICS else demand.requests
                rooms[scope] = Room(now, left, now)

    def note_snapshots(self, snapshots: Iterable[DeploymentSnapshot]) -> None:
        """Note what snapshots show now, where no refusal did within a minute."""
        now = self._times.now()
        for snapshot in snapshots:
            scope = snapshot.deployment.model_scope
            for quota in snapshot.quotas:
                rooms, left = self._by_metric[quota.metric.value], max(quota.limit - quota.used, 0)
                known = rooms.get(scope)
                if known is None or not now - MINUTE < known.at <= now:
                    rooms[scope] = Room(now, left, now)

    def forget(self, window: float) -> None:
        """Forget what was shown more than a window and a day ago, or before the clock was set back."""
        now = self._times.now()
        since = now - max(window, CHARGES_KEPT)
        for metric, rooms in self._by_metric.items():
            kept = {scope: room for scope, room in rooms.items() if since < room.at <= now}
            self._by_metric[metric] = kept
