"""The cooldowns and learnt limits of a database file, all of them in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llm_router.domain.calendar import microseconds
from llm_router.domain.cooldown import LEARNT_FOR, Cooldown, LearntLimit
from llm_router.domain.quota import Metric
from llm_router.stores.ledger import due_cooldowns, forgotten_at, impose, latest_cooldown, moved_back, probed
from llm_router.stores.sqlite.faults import decoding

if TYPE_CHECKING:
    import sqlite3

    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.stores.sqlite.journal import Entry

__all__ = ["Cooldowns"]

_SELECT = """
    SELECT cooldown.scope, cooldown.until, reason, learnt, half_open, strikes, since, credential, imposed
    FROM cooldown LEFT JOIN cooldown_details AS details
    ON details.scope = cooldown.scope AND details.until = cooldown.until
"""
_INSERT = "INSERT OR REPLACE INTO cooldown (scope, until, reason, learnt) VALUES (?, ?, ?, ?)"
_INSERT_DETAILS = """
    INSERT OR REPLACE INTO cooldown_details (scope, until, half_open, strikes, since, credential, imposed)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_DELETE = "DELETE FROM cooldown WHERE scope = ?"
_SWEEP_DETAILS = "DELETE FROM cooldown_details WHERE scope NOT IN (SELECT scope FROM cooldown)"
_SELECT_LIFTS = "SELECT count FROM lifts"
_COUNT_LIFT = "UPDATE lifts SET count = count + 1"
_SELECT_LEARNT = "SELECT scope, metric, value, until FROM learnt_limit"
_INSERT_LEARNT = "INSERT OR REPLACE INTO learnt_limit (scope, metric, value, until) VALUES (?, ?, ?, ?)"
_DELETE_LEARNT = "DELETE FROM learnt_limit WHERE scope = ? AND metric = ?"
_SWEEP_LEARNT = "DELETE FROM learnt_limit WHERE until <= ?"

_Learnt = dict["Scope", dict[Metric, tuple[int, int]]]


class Cooldowns:
    """The cooldown of each scope, and the limits learnt from refusals, one for each metric.

    Attributes:
        known: Whether they have ever been read.
        present: The cooldown of each scope; some may have ended.
        lifts: How many cooldowns of the file were lifted or made due.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.known = False
        self.present: dict[Scope, Cooldown] = {}
        self.lifts = 0
        self._imposed: dict[Scope, int] = {}  # when the end of each was set, where that is known
        self._connection = connection
        self._changed = False
        self._learnt: _Learnt = {}

    @decoding
    def refresh(self) -> bool:
        """Read all of them again after another connection changed some; return whether a limit differs."""
        self.known = True
        rows = self._connection.execute(_SELECT).fetchall()
        self.present = {row[0]: _cooldown(*row[:-1]) for row in rows}
        self._imposed = {row[0]: row[-1] for row in rows if row[-1] is not None}
        (self.lifts,) = self._connection.execute(_SELECT_LIFTS).fetchone()
        learnt: _Learnt = {}
        for scope, metric, limit, until in self._connection.execute(_SELECT_LEARNT):
            learnt.setdefault(scope, {})[Metric(metric)] = limit, until
        before, self._learnt = self._learnt, learnt
        return learnt != before

    def set_back(self, now: int) -> bool:
        """Let nothing last longer because the clock was set back; return whether a limit did."""
        for scope in [scope for scope, imposed in self._imposed.items() if imposed > now]:
            if scope in self.present:
                self._replace(scope, moved_back(self.present[scope], self._imposed[scope], now), now)
        longest = now + microseconds(LEARNT_FOR)
        late = [
            (scope, metric, limit)
            for scope, limits in self._learnt.items()
            for metric, (limit, end) in limits.items()
            if end > longest
        ]
        for scope, metric, limit in late:
            self._learnt[scope][metric] = limit, longest
            self._connection.execute(_INSERT_LEARNT, (scope, metric.value, limit, longest))
        self._changed = self._changed or bool(late)
        return bool(late)

    def latest(self, deployment: Deployment, now: int) -> Cooldown | None:
        """Return the cooldown that ends last among those of the deployment's scopes."""
        return latest_cooldown(self.present, deployment, now) if self.present else None

    def learnt_limits(self, scope: Scope, now: int) -> dict[Metric, tuple[int, int]]:
        """Return the learnt limits in force for a scope, and when each ends."""
        learnt = self._learnt.get(scope)
        return {metric: entry for metric, entry in learnt.items() if entry[1] > now} if learnt else {}

    def put(self, cooldown: Cooldown, now: int) -> None:
        """Add, lift or retry the cooldown of a scope, and record the limits learnt with it."""
        present = self.present.get(cooldown.scope)
        kept = impose(present, cooldown, now)
        if kept is not present:
            self._replace(cooldown.scope, kept, now)
        if present is not None and cooldown.until <= 0.0:
            self._connection.execute(_COUNT_LIFT)
            self.lifts += 1
            self._changed = True
        if cooldown.learnt:
            self._learn(cooldown, now)

    def probe(self, deployment: Deployment, now: int) -> tuple[Cooldown, ...]:
        """Let a granted request probe the half-open cooldowns that are due; return them."""
        due = due_cooldowns(self.present, deployment, now) if self.present else ()
        for cooldown in due:
            self._replace(cooldown.scope, probed(cooldown, now), now)
        return due

    def write(self, entry: Entry) -> None:
        """Record in ``entry`` whether any changed."""
        entry.cooldowns, self._changed = self._changed, False

    def sweep(self, now: int) -> None:
        """Forget what has ended."""
        ended = [key for key, cooldown in self.present.items() if forgotten_at(cooldown) <= now]
        for scope in ended:
            del self.present[scope]
            self._imposed.pop(scope, None)
        if ended:
            self._connection.executemany(_DELETE, [(scope,) for scope in ended])
            self._connection.execute(_SWEEP_DETAILS)
        if self._connection.execute(_SWEEP_LEARNT, (now,)).rowcount:
            ended = [
                key for key, limits in self._learnt.items() if all(end <= now for _, end in limits.values())
            ]
            for scope in ended:
                del self._learnt[scope]

    def _replace(self, scope: Scope, kept: Cooldown | None, now: int) -> None:
        """Keep ``kept`` as the cooldown of a scope from now on; None for none."""
        self._changed = True
        if kept is None:
            del self.present[scope]
            self._imposed.pop(scope, None)
            self._connection.execute(_DELETE, (scope,))
            return
        self.present[scope], self._imposed[scope] = kept, now
        learnt = json.dumps([[limit.metric, limit.limit] for limit in kept.learnt])
        details = kept.half_open, kept.strikes, kept.since, kept.credential, now
        self._connection.execute(_INSERT, (scope, kept.until, kept.reason, learnt))
        self._connection.execute(_INSERT_DETAILS, (scope, kept.until, *details))

    def _learn(self, cooldown: Cooldown, now: int) -> None:
        """Record limits that the provider stated, in place of those that it stated before."""
        scope, end = cooldown.scope, now + microseconds(LEARNT_FOR)
        limits = self._learnt[scope] = self.learnt_limits(scope, now)
        for learnt in cooldown.learnt:
            if learnt.limit is None:
                limits.pop(learnt.metric, None)
                self._connection.execute(_DELETE_LEARNT, (scope, learnt.metric.value))
            else:
                limits[learnt.metric] = learnt.limit, end
                self._connection.execute(_INSERT_LEARNT, (scope, learnt.metric.value, learnt.limit, end))
        self._changed = True


def _cooldown(
    scope: Scope,
    until: float,
    reason: str,
    learnt: str,
    half_open: int | None,
    strikes: int,
    since: float,
    credential: str,
) -> Cooldown:
    limits = tuple(LearntLimit(Metric(metric), limit) for metric, limit in json.loads(learnt))
    if half_open is None:  # no details: an earlier version wrote it
        return Cooldown(scope, until, reason, limits)
    return Cooldown(scope, until, reason, limits, bool(half_open), strikes, since, credential)
