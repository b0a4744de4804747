"""Learnt limits in the form in which stores that decide in Python keep them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from llm_router.domain.calendar import NEVER, microseconds, seconds
from llm_router.domain.limits import LEARNT_FOR, LearntLimit, LimitRecord, LimitSource
from llm_router.domain.quota import MAX_LIMIT, Metric

__all__ = ["StoredLimit", "learn", "learnt_terms", "read_learnt", "remembered", "write_learnt"]

_AT_ONCE = 1_000
"""Microseconds by which limits learnt at one moment may be ahead of the clock: each is one later."""

_DETAILS = tuple(field.name for field in attrs.fields(LearntLimit) if field.name not in ("metric", "limit"))
_DEFAULTS = LearntLimit(Metric.RPM, 0)


class StoredLimit(NamedTuple):
    """A learnt limit; see :class:`~llm_router.domain.limits.LimitRecord`. Times are in microseconds."""

    limit: int
    raised: int
    raise_at: int
    learnt_at: int
    source: LimitSource

    @classmethod
    def of(cls, record: LimitRecord) -> StoredLimit:
        """Return the limit that :meth:`record` shows."""
        raise_at, learnt_at = microseconds(record.raise_at), microseconds(record.learnt_at)
        return cls(record.limit, record.raised, raise_at, learnt_at, record.source)

    @property
    def until(self) -> int:
        """When it is forgotten."""
        return self.learnt_at + microseconds(LEARNT_FOR)

    def in_force(self, now: int) -> tuple[int, int]:
        """Return the limit at ``now``, and until when it is in force."""
        if now >= self.raise_at:
            return self.raised, self.until
        return self.limit, min(self.raise_at, self.until)

    def record(self) -> LimitRecord:
        """Return it in seconds."""
        raise_at = math.inf if self.raise_at >= NEVER else seconds(self.raise_at)
        return LimitRecord(self.limit, self.source, seconds(self.learnt_at), self.raised, raise_at)

    def moved_back(self, now: int) -> StoredLimit:
        """Return it as if learnt now, if it was learnt later: the clock was set back."""
        if self.learnt_at <= now + _AT_ONCE:
            return self
        raise_at = self.raise_at
        if raise_at < NEVER:
            raise_at = max(now + raise_at - self.learnt_at, 0)
        return self._replace(learnt_at=now, raise_at=raise_at)


def remembered(learnt: Mapping[Metric, StoredLimit], now: int) -> dict[Metric, StoredLimit]:
    """Return the limits that are not forgotten yet."""
    return {metric: entry for metric, entry in learnt.items() if entry.until > now}


def learn(present: StoredLimit | None, learnt: LearntLimit, now: int) -> StoredLimit | None:
    """Return what a limit becomes when another one is learnt; None for nothing.

    Args:
        present: The limit learnt so far, or None; one that is forgotten by now counts as None.
        learnt: The new one, which may say that it only takes the place of a certain one.
        now: In microseconds.
    """
    if present is not None and present.until <= now:
        present = None
    if learnt.replaces is not None:
        expected = present.learnt_at if present is not None else 0
        if microseconds(learnt.replaces) != expected:
            return present
    if learnt.limit is None:
        return None
    limit, raised, after = learnt_terms(learnt.limit, learnt)
    # Two of one microsecond must differ, or the second of two that replace the same one would be obeyed, too.
    learnt_at = now if present is None else max(now, present.learnt_at + 1)
    return StoredLimit(limit, raised, min(now + after, NEVER), learnt_at, learnt.source)


def learnt_terms(limit: int, learnt: LearntLimit) -> tuple[int, int, int]:
    """Return ``limit``, what it is raised to, and after how many microseconds (NEVER for never), in bounds.

    What is not a number counts as never.
    """
    limit = max(0, min(limit, MAX_LIMIT))
    raised = limit if learnt.raised is None else max(limit, min(learnt.raised, MAX_LIMIT))
    after = max(0, microseconds(learnt.raise_after)) if learnt.raise_after < LEARNT_FOR else NEVER
    return limit, raised, after


def write_learnt(
    learnt: Iterable[LearntLimit],
) -> tuple[list[tuple[str, int | None]], list[dict[str, object]]]:
    """Return limits as JSON may hold them: the metric and the limit of each, and what else each says.

    They are apart since versions that know only the former read them as pairs. The second list is empty if no
    limit says more.
    """
    pairs = [(entry.metric.value, entry.limit) for entry in learnt]
    details = [
        {name: getattr(entry, name) for name in _DETAILS if getattr(entry, name) != getattr(_DEFAULTS, name)}
        for entry in learnt
    ]
    return pairs, details if any(details) else []


def read_learnt(
    pairs: Iterable[tuple[str, int | None]], details: Sequence[Mapping[str, Any]] = ()
) -> tuple[LearntLimit, ...]:
    """Return the limits from what :func:`write_learnt` returned; details that are not known are ignored."""
    limits = tuple(LearntLimit(Metric(metric), limit) for metric, limit in pairs)
    if len(details) != len(limits):
        return limits
    return tuple(_with_details(limit, each) for limit, each in zip(limits, details, strict=True))


def _with_details(limit: LearntLimit, details: Mapping[str, Any]) -> LearntLimit:
    known = {name: details[name] for name in _DETAILS if name in details}
    source = LimitSource(known.pop("source", limit.source))
    return attrs.evolve(limit, source=source, **known)
