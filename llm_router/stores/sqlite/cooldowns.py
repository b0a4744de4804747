"""The cooldowns and learnt limits of a database file, all of them in memory."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from llm_router.domain.calendar import microseconds
from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.quota import Metric
from llm_router.stores.ledger import latest_cooldown
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3

    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.stores.sqlite.journal import Entry

__all__ = ["Cooldowns"]

_SELECT = "SELECT scope, until, reason, learnt FROM cooldown"
_INSERT = "INSERT OR REPLACE INTO cooldown (scope, until, reason, learnt) VALUES (?, ?, ?, ?)"
_LIFT = "DELETE FROM cooldown WHERE scope = ?"
_SWEEP = "DELETE FROM cooldown WHERE until <= ?"
_SELECT_LEARNT = "SELECT scope, metric, value, until FROM learnt_limit"
_INSERT_LEARNT = "INSERT OR REPLACE INTO learnt_limit (scope, metric, value, until) VALUES (?, ?, ?, ?)"
_SWEEP_LEARNT = "DELETE FROM learnt_limit WHERE until <= ?"

_Learnt = dict["Scope", dict[Metric, tuple[int, int]]]


class Cooldowns:
    """The cooldown of each scope, and the limits learnt from refusals, one for each metric.

    Attributes:
        known: Whether they have ever been read.
        present: The cooldown of each scope; some may have ended.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.known = False
        self.present: dict[Scope, Cooldown] = {}
        self._connection = connection
        self._changed = False
        self._learnt: _Learnt = {}

    @decoding
    def refresh(self) -> bool:
        """Read all of them again after another connection changed some; return whether a limit differs."""
        self.known = True
        rows = self._connection.execute(_SELECT).fetchall()
        self.present = {row[0]: _cooldown(*row) for row in rows}
        learnt: _Learnt = {}
        for scope, metric, limit, until in self._connection.execute(_SELECT_LEARNT):
            learnt.setdefault(scope, {})[Metric(metric)] = limit, until
        before, self._learnt = self._learnt, learnt
        return learnt != before

    def latest(self, deployment: Deployment, now: int) -> Cooldown | None:
        """Return the cooldown that ends last among those of the deployment's scopes."""
        return latest_cooldown(self.present, deployment, now) if self.present else None

    def learnt_limits(self, scope: Scope, now: int) -> dict[Metric, tuple[int, int]]:
        """Return the learnt limits in force for a scope, and when each ends."""
        learnt = self._learnt.get(scope)
        return {metric: entry for metric, entry in learnt.items() if entry[1] > now} if learnt else {}

    def put(self, cooldown: Cooldown, now: int) -> None:
        """Add or lift the cooldown of a scope, and record the limits learnt with it."""
        present = self.present.get(cooldown.scope)
        if present is not None and microseconds(present.until) <= now:
            present = None
        if cooldown.until == -math.inf:
            self._lift(cooldown.scope)
        elif microseconds(cooldown.until) > now and (present is None or cooldown.until > present.until):
            self._keep(cooldown)
        if cooldown.learnt:
            self._learn(cooldown, now)

    def write(self, entry: Entry) -> None:
        """Record in ``entry`` whether any changed."""
        entry.cooldowns, self._changed = self._changed, False

    def sweep(self, now: int) -> None:
        """Forget what has ended."""
        ended = [key for key, cooldown in self.present.items() if microseconds(cooldown.until) <= now]
        for scope in ended:
            del self.present[scope]
        if ended:
            self._connection.execute(_SWEEP, (now / 1e6,))
        if self._connection.execute(_SWEEP_LEARNT, (now,)).rowcount:
            ended = [
                key for key, limits in self._learnt.items() if all(end <= now for _, end in limits.values())
            ]
            for scope in ended:
                del self._learnt[scope]

    def _keep(self, cooldown: Cooldown) -> None:
        self.present[cooldown.scope] = cooldown
        learnt = json.dumps([[limit.metric, limit.limit] for limit in cooldown.learnt])
        self._connection.execute(_INSERT, (cooldown.scope, cooldown.until, cooldown.reason, learnt))
        self._changed = True

    def _lift(self, scope: Scope) -> None:
        if self.present.pop(scope, None) is not None:
            self._connection.execute(_LIFT, (scope,))
            self._changed = True

    def _learn(self, cooldown: Cooldown, now: int) -> None:
        """Record limits that the provider stated; while one is in force, a higher one only renews it."""
        scope, end = cooldown.scope, now + microseconds(LEARNT_FOR)
        limits = self._learnt[scope] = self.learnt_limits(scope, now)
        for learnt in cooldown.learnt:
            limit, _ = limits.get(learnt.metric, (learnt.limit, 0))
            lowest = min(limit, learnt.limit)
            limits[learnt.metric] = lowest, end
            self._connection.execute(_INSERT_LEARNT, (scope, learnt.metric.value, lowest, end))
        self._changed = True


def _cooldown(scope: Scope, until: float, reason: str, learnt: str) -> Cooldown:
    limits = tuple(LearntLimit(Metric(metric), limit) for metric, limit in json.loads(learnt))
    return Cooldown(scope, until, reason, limits)
