"""The cooldowns and learnt limits of a database file, all of them in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llm_router.domain.cooldown import Cooldown
from llm_router.stores.ledger import (
    StoredLimit,
    due_cooldowns,
    forgotten_at,
    impose,
    latest_cooldown,
    learn,
    moved_back,
    probed,
    read_learnt,
    remembered,
    write_learnt,
)
from llm_router.stores.sqlite.faults import decoding
from llm_router.stores.sqlite.limits import pack_limits, unpack_limits

if TYPE_CHECKING:
    import sqlite3

    from llm_router.domain.deployment import Deployment, Scope
    from llm_router.domain.quota import Metric
    from llm_router.stores.sqlite.journal import Entry

__all__ = ["Cooldowns"]

_SELECT = """
    SELECT cooldown.scope, cooldown.until, reason, learnt, limits.details,
        half_open, strikes, since, credential, imposed
    FROM cooldown
    LEFT JOIN cooldown_details AS details
    ON details.scope = cooldown.scope AND details.until = cooldown.until
    LEFT JOIN cooldown_limits AS limits ON limits.scope = cooldown.scope AND limits.until = cooldown.until
"""
_INSERT = "INSERT OR REPLACE INTO cooldown (scope, until, reason, learnt) VALUES (?, ?, ?, ?)"
_INSERT_DETAILS = """
    INSERT OR REPLACE INTO cooldown_details (scope, until, half_open, strikes, since, credential, imposed)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_LIMITS = "INSERT OR REPLACE INTO cooldown_limits (scope, until, details) VALUES (?, ?, ?)"
_DELETE_LIMITS = "DELETE FROM cooldown_limits WHERE scope = ?"
_DELETE = "DELETE FROM cooldown WHERE scope = ?"
_SWEEP_DETAILS = (
    "DELETE FROM cooldown_details WHERE scope NOT IN (SELECT scope FROM cooldown)",
    "DELETE FROM cooldown_limits WHERE scope NOT IN (SELECT scope FROM cooldown)",
)
_SELECT_LIFTS = "SELECT count FROM lifts"
_COUNT_LIFT = "UPDATE lifts SET count = count + 1"
_SELECT_LEARNT = "SELECT scope, limits FROM learnt_limits"
_INSERT_LEARNT = "INSERT OR REPLACE INTO learnt_limits (scope, limits) VALUES (?, ?)"
_DELETE_LEARNT = "DELETE FROM learnt_limits WHERE scope = ?"


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
        self._learnt: dict[Scope, dict[Metric, StoredLimit]] = {}

    @decoding
    def refresh(self) -> bool:
        """Read all of them again after another connection changed some; return whether a limit differs."""
        self.known = True
        rows = self._connection.execute(_SELECT).fetchall()
        self.present = {row[0]: _cooldown(*row[:-1]) for row in rows}
        self._imposed = {row[0]: int(row[-1]) for row in rows if row[-1] is not None}
        self.lifts = int(self._connection.execute(_SELECT_LIFTS).fetchone()[0])
        learnt = self._connection.execute(_SELECT_LEARNT)
        before, self._learnt = self._learnt, {scope: unpack_limits(limits) for scope, limits in learnt}
        return self._learnt != before

    def set_back(self, now: int) -> bool:
        """Let nothing last longer because the clock was set back; return whether a limit did."""
        for scope in [scope for scope, imposed in self._imposed.items() if imposed > now]:
            if scope in self.present:
                self._replace(scope, moved_back(self.present[scope], self._imposed[scope], now), now)
        late = [
            (scope, metric, entry.moved_back(now))
            for scope, limits in self._learnt.items()
            for metric, entry in limits.items()
            if entry.moved_back(now) is not entry
        ]
        for scope, metric, entry in late:
            self._keep(scope, metric, entry)
        return bool(late)

    def latest(self, deployment: Deployment, now: int) -> Cooldown | None:
        """Return the cooldown that ends last among those of the deployment's scopes."""
        return latest_cooldown(self.present, deployment, now) if self.present else None

    def learnt_limits(self, scope: Scope, now: int) -> dict[Metric, StoredLimit]:
        """Return the learnt limits of a scope that are not forgotten yet."""
        learnt = self._learnt.get(scope)
        return remembered(learnt, now) if learnt else {}

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
            for statement in _SWEEP_DETAILS:
                self._connection.execute(statement)
        over = [
            (scope, metric)
            for scope, limits in self._learnt.items()
            for metric, entry in limits.items()
            if entry.until <= now
        ]
        for scope, metric in over:
            self._forget(scope, metric)

    def _replace(self, scope: Scope, kept: Cooldown | None, now: int) -> None:
        """Keep ``kept`` as the cooldown of a scope from now on; None for none."""
        self._changed = True
        if kept is None:
            del self.present[scope]
            self._imposed.pop(scope, None)
            self._connection.execute(_DELETE, (scope,))
            return
        self.present[scope], self._imposed[scope] = kept, now
        learnt, more = write_learnt(kept.learnt)
        details = kept.half_open, kept.strikes, kept.since, kept.credential, now
        self._connection.execute(_INSERT, (scope, kept.until, kept.reason, json.dumps(learnt)))
        self._connection.execute(_INSERT_DETAILS, (scope, kept.until, *details))
        if more:
            self._connection.execute(_INSERT_LIMITS, (scope, kept.until, json.dumps(more)))
        else:
            self._connection.execute(_DELETE_LIMITS, (scope,))

    def _learn(self, cooldown: Cooldown, now: int) -> None:
        """Record limits that were learnt, in place of those before."""
        scope = cooldown.scope
        for learnt in cooldown.learnt:
            present = self._learnt.get(scope, {}).get(learnt.metric)
            kept = learn(present, learnt, now)
            if kept is not None and kept is not present:
                self._keep(scope, learnt.metric, kept)
            elif kept is None and present is not None:
                self._forget(scope, learnt.metric)

    def _keep(self, scope: Scope, metric: Metric, entry: StoredLimit) -> None:
        self._changed = True
        limits = self._learnt.setdefault(scope, {})
        limits[metric] = entry
        self._connection.execute(_INSERT_LEARNT, (scope, pack_limits(limits)))

    def _forget(self, scope: Scope, metric: Metric) -> None:
        self._changed = True
        limits = self._learnt[scope]
        del limits[metric]
        if limits:
            self._connection.execute(_INSERT_LEARNT, (scope, pack_limits(limits)))
        else:
            del self._learnt[scope]
            self._connection.execute(_DELETE_LEARNT, (scope,))


def _cooldown(
    scope: Scope,
    until: float,
    reason: str,
    learnt: str,
    more: str | None,
    half_open: int | None,
    strikes: int,
    since: float,
    credential: str,
) -> Cooldown:
    limits = read_learnt(json.loads(learnt), json.loads(more or "[]"))
    # SQLite keeps in any column whatever it is given: what would fail later is found here.
    if not isinstance(reason, str):
        raise TypeError("a reason is no text")
    if half_open is None:  # no details: an earlier version wrote it
        return Cooldown(scope, float(until), reason, limits)
    details = bool(half_open), int(strikes), float(since), str(credential)
    return Cooldown(scope, float(until), reason, limits, *details)
