"""Have the projects of a model that have the same limit take turns in trying one request more.

They are usually of one tier: what one of them finds out holds for the others. So a refusal puts off the tries
of all, and an answer beyond the limit lets all try at once. Each still has its turn within a few hours, since
one of them may have been given more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from llm_router.domain.limits import LearntLimit, LimitRecord, LimitSource
from llm_router.domain.quota import Metric
from llm_router.engine.limits import FIRST_WAIT, SELDOM, longest_wait

__all__ = ["concerns_others", "follow", "proves_more", "put_off", "takes_turns"]

_OFTEN, _MANY = 480.0, 30
"""Seconds between the tries of several projects that have at least so many requests a minute together: a try
is at most one of 240 requests then."""

_ROUND = 4.0
"""Most seconds between two tries of one project, as a multiple of the longest wait of one that is alone."""


def takes_turns(entry: LearntLimit) -> bool:
    """Return whether a limit is one of requests per minute that will be tried after a while."""
    is_to_rise = entry.raised is not None and FIRST_WAIT <= entry.raise_after < math.inf
    return entry.metric is Metric.RPM and is_to_rise


def concerns_others(entry: LearntLimit, before: LimitRecord | None) -> bool:
    """Return whether a limit that was learnt from a refusal is that of a try that failed."""
    return before is not None and _is_same(before, entry.limit)


def proves_more(entry: LearntLimit, before: LimitRecord) -> bool:
    """Return whether a limit of requests per minute that an answer taught is one that has proven itself."""
    is_known = before.source is not LimitSource.UNKNOWN
    return entry.metric is Metric.RPM and is_known and (entry.limit or 0) > before.limit


def put_off(
    entry: LearntLimit, others: Sequence[LimitRecord | None], now: float, *, failed: bool
) -> tuple[LearntLimit, Mapping[int, LearntLimit]]:
    """Return a limit with the time of its next try put behind those of others, and theirs.

    Those of others change only if a try has failed, and not if they are due.

    Args:
        entry: The limit that a refusal taught a project.
        others: What is known of the same metric in other projects.
        now: Seconds since the epoch.
        failed: Whether the refusal was one of a request more than the limit.
    """
    same = [
        (record.raise_at, place)
        for place, record in enumerate(others)
        if record is not None and _is_same(record, entry.limit)
    ]
    ahead = [place for at, place in sorted(same) if at > now]
    apart = _apart(entry, len(same) + 1)
    own = attrs.evolve(entry, raise_after=apart * (len(ahead) + 1)) if same else entry
    later: dict[int, LearntLimit] = {}
    for turn, place in enumerate(ahead if failed else (), start=1):
        record = others[place]
        if record is not None and record.raise_at < now + apart * turn:
            later[place] = _again(entry.metric, record, record.raised, apart * turn)
    return own, later


def _apart(entry: LearntLimit, size: int) -> float:
    """Return the seconds between the tries of so many projects with a limit."""
    longest = longest_wait(entry.limit or 0)
    if entry.raise_after > longest:  # it is seldom used up
        return min(entry.raise_after, SELDOM / size)
    # Several together may try more often than each by itself, and yet cost a smaller share.
    limit = entry.limit or 0
    together = _OFTEN if size * limit >= _MANY else longest_wait(round(math.sqrt(size) * limit))
    return min(entry.raise_after, together, _ROUND * longest / size)


def follow(
    entry: LearntLimit, before: LimitRecord, others: Sequence[LimitRecord | None], now: float
) -> Mapping[int, LearntLimit]:
    """Return what others learn from a limit that has proven itself: to try it at once.

    Args:
        entry: What a project learnt.
        before: What was known of it.
        others: What is known of the same metric in other projects.
        now: Seconds since the epoch.
    """
    return {
        place: _again(entry.metric, record, entry.limit, 0.0)
        for place, record in enumerate(others)
        if record is not None
        and entry.limit is not None
        and _is_same(record, before.limit)
        and record.in_force(now) < entry.limit
    }


def _is_same(record: LimitRecord, limit: int | None) -> bool:
    return record.source is not LimitSource.UNKNOWN and record.limit == limit


def _again(metric: Metric, record: LimitRecord, raised: int, after: float) -> LearntLimit:
    return LearntLimit(metric, record.limit, record.source, raised, after, record.learnt_at)
