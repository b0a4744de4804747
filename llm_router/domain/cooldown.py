"""Cooldowns and quarantines: which scope is avoided, until when, and why."""

from __future__ import annotations

import math
import shlex

import attrs

from llm_router.domain.deployment import Scope
from llm_router.domain.limits import LEARNT_FOR, LearntLimit
from llm_router.domain.quota import Metric

__all__ = ["LEARNT_FOR", "PROBE_TIME", "STRIKES_KEPT", "Cooldown", "LearntLimit", "is_unreadable"]

PROBE_TIME = 60.0
"""Seconds for which the one request that probes a half-open scope keeps the others waiting."""

STRIKES_KEPT = 25 * 3600.0
"""Seconds after its end for which a half-open cooldown, and so its strikes, is remembered."""


_DISABLED = "disabled"
_UNREADABLE = "unreadable record"
_LONG_AGO = 1.0
_NOW = 0.0


def _lowest(learnt: tuple[LearntLimit, ...]) -> tuple[LearntLimit, ...]:
    """Return the lowest limit for each metric: one refusal may name several quotas of the same."""
    if len(learnt) <= 1:
        return learnt
    lowest: dict[Metric, LearntLimit] = {}
    for entry in learnt:
        known = lowest.get(entry.metric)
        if known is None or known.limit is None or entry.limit is None or entry.limit < known.limit:
            lowest[entry.metric] = entry
    return tuple(lowest.values())


def is_unreadable(reason: str) -> bool:
    """Return whether that is the reason of :meth:`Cooldown.unreadable`."""
    return reason.startswith(_UNREADABLE)


@attrs.frozen
class Cooldown:
    """A scope that no request is sent through until a given time.

    Attributes:
        scope: What cools down or is quarantined.
        until: Seconds since the Unix epoch; ``math.inf`` for a quarantine, which lasts until it is lifted.
        reason: Why, in words that a status can show.
        learnt: Limits to apply to the scope from now on (only for the scope of a (project, model)); of
            several for one metric the lowest.
        half_open: Whether, at its end, one request goes first, for all processes: the next are admitted when
            the cooldown is lifted, or one at a time every :data:`PROBE_TIME` seconds.
        strikes: How often in a row the scope was refused, this time included; 0 if it is not counted.
        since: When it began, in seconds since the Unix epoch; 0 if it is not known.
        credential: "" for a cooldown; for a quarantine a mark of the credential it was imposed on: enough
            to see that it is another one by now, useless to find or prove one; or ``"*"`` if several
            credentials share the scope.
    """

    scope: Scope
    until: float
    reason: str
    learnt: tuple[LearntLimit, ...] = attrs.field(default=(), converter=_lowest)
    half_open: bool = False
    strikes: int = 0
    since: float = 0.0
    credential: str = ""

    @property
    def is_quarantine(self) -> bool:
        """Whether it lasts until a request that tries again succeeds, or until it is lifted."""
        return (self.until == math.inf or self.credential != "") and not self.is_disabled

    @property
    def is_disabled(self) -> bool:
        """Whether a user disabled the scope; then nothing is wrong with it."""
        return self.until == math.inf and self.reason.startswith(_DISABLED)

    @property
    def is_unreadable(self) -> bool:
        """Whether it stands for a record in the store that cannot be read; see :meth:`unreadable`."""
        return is_unreadable(self.reason)

    @property
    def only_teaches(self) -> bool:
        """Whether it cools nothing down, but teaches limits; see :meth:`learn`."""
        return self.until == _LONG_AGO

    @property
    def only_retries(self) -> bool:
        """Whether it cools nothing down, but makes a half-open cooldown due; see :meth:`retry`."""
        return self.until == _NOW

    @classmethod
    def disable(cls, scope: Scope, reason: str = "") -> Cooldown:
        """Return the value that keeps ``scope`` out of use until it is lifted."""
        return cls(scope, math.inf, f"{_DISABLED}: {reason}" if reason else _DISABLED)

    @classmethod
    def unreadable(cls, scope: Scope, until: float, key_id: str, model: str) -> Cooldown:
        """Return what a store shows of ``scope``, which its record says nothing of that could be read.

        Args:
            scope: Of a model, a key, a project or a provider.
            until: Until when it is not looked at again.
            key_id: The key that is to be lifted, whereupon the record begins anew.
            model: The model that is enough to lift, if it is the scope of a model.
        """
        words = ["llm-router", "keys", "lift", key_id]
        command = shlex.join([*words, "--model", model] if scope.startswith("model:") else words)
        return cls(scope, until, f"{_UNREADABLE} of {scope!r} in the store; remove it with {command}")

    @classmethod
    def lift(cls, scope: Scope, *, limits: bool = False) -> Cooldown:
        """Return the value that ends the cooldown or quarantine of ``scope``.

        With ``limits``, the limits learnt for it are forgotten as well. A record that cannot be read begins
        anew.
        """
        learnt = tuple(LearntLimit(metric, None) for metric in Metric) if limits else ()
        return cls(scope, -math.inf, "lifted", learnt)

    @classmethod
    def learn(cls, scope: Scope, *limits: LearntLimit) -> Cooldown:
        """Return the value that teaches ``limits`` of ``scope``, and cools nothing down."""
        return cls(scope, _LONG_AGO, "limits learnt", limits)

    @classmethod
    def retry(cls, scope: Scope) -> Cooldown:
        """Return the value that ends a half-open cooldown of ``scope`` now, so that one request tries it."""
        return cls(scope, _NOW, "to be tried again", half_open=True)
