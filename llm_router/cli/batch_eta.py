"""Say after how many seconds quotas can have admitted so many requests, if no other program takes any."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from llm_router.domain.explanation import Exclusion, ExplainedCandidate, ExplainedQuota, Explanation
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import GUARD, Refill

__all__ = ["seconds_for"]

_DAY = 86_400.0
_LONGEST = 366 * _DAY
"""Seconds beyond which nothing is foretold."""

_NEAR = 0.01
"""Seconds to which the answer is exact."""

_COUNTED = (None, Exclusion.QUOTA, Exclusion.PARKED)
"""What keeps a deployment out of use no longer than its quotas do."""


def seconds_for(wishes: Iterable[tuple[Explanation, float]]) -> float | None:
    """Return the seconds until requests can have been admitted at the earliest.

    Limits that nothing was refused at so far do not count, since they rise.

    Args:
        wishes: What a send of each kind would decide now, and how many there are of the kind.

    Returns:
        The seconds; 0 if there is room for all of them now, None if there is not within a year.
    """
    together: dict[tuple[str, str], _Supply] = {}
    seconds: list[float | None] = []
    most = 0.0
    for explanation, number in wishes:
        supplies = _supplies(explanation)
        known = len(explanation.candidates)
        size = known + explanation.left_out  # those that are left out are taken to be like the others
        needed = number * known / size if size else number
        most += needed
        together |= supplies
        seconds.append(_seconds_until(list(supplies.values()), needed))
    seconds.append(_seconds_until(list(together.values()), most))
    return None if None in seconds else max(each for each in seconds if each is not None)


@attrs.frozen
class _Window:
    """A quota of a window, in requests.

    Attributes:
        limit: How many it admits in a window.
        left: How many of them are left now.
        seconds: The window.
        first: Seconds until there is room for one.
        back: Seconds until all are back.
        steady: Whether they come back one by one.
    """

    limit: int
    left: int
    seconds: float
    first: float = 0.0
    back: float = 0.0
    steady: bool = False

    def admits(self, seconds: float) -> float:
        """Return how many can have been admitted after so many seconds."""
        if self.steady:
            return self.left + self.limit * seconds / self.seconds
        # What is taken at once comes back at once, a window later.
        rounds, rest = divmod(seconds, self.seconds)
        return self.limit * rounds + self.left + (self.limit - self.left) * self._returned(rest)

    def _returned(self, seconds: float) -> float:
        """Return which share of what others took is back; it comes back evenly between two times."""
        if seconds >= self.back:
            return 1.0
        return max(seconds - self.first, 0.0) / (self.back - self.first) if seconds > self.first else 0.0

    def full(self) -> _Window:
        """Return this window with nothing taken."""
        return attrs.evolve(self, left=0 if self.steady else self.limit, first=0.0, back=0.0)


@attrs.frozen
class _Supply:
    """What the quotas of one (project, model) admit.

    Attributes:
        begins: Seconds until it can be used at all.
        windows: Its quotas of a window.
        today: How many requests are left of its day; infinity without a daily quota.
        daily: How many a day admits.
        ends: Seconds until the day ends.
    """

    begins: float
    windows: tuple[_Window, ...]
    today: float = math.inf
    daily: float = math.inf
    ends: float = math.inf

    def admits(self, seconds: float) -> float:
        """Return how many requests can have been admitted after so many seconds."""
        if seconds < self.begins:
            return 0.0
        windows, since = self.windows, seconds
        full = tuple(window.full() for window in windows)
        if self.begins > 0.0:  # meanwhile its windows have come back
            windows, since = full, seconds - self.begins
        admitted = min(self.today, _least(windows, min(since, self.ends)))
        if seconds > self.ends:
            days, rest = divmod(seconds - self.ends, _DAY)
            admitted += days * min(self.daily, _least(full, _DAY)) + min(self.daily, _least(full, rest))
        return admitted


def _least(windows: Iterable[_Window], seconds: float) -> float:
    return min((window.admits(seconds) for window in windows), default=math.inf)


def _supplies(explanation: Explanation) -> dict[tuple[str, str], _Supply]:
    """Return what can be used, by project and model, whose keys share their quotas."""
    supplies: dict[tuple[str, str], _Supply] = {}
    for candidate in explanation.candidates:
        begins = 0.0 if candidate.exclusion in _COUNTED else candidate.usable_in
        place = candidate.project, candidate.model
        if begins is not None and (place not in supplies or begins < supplies[place].begins):
            supplies[place] = _supply(candidate, begins)
    return supplies


def _supply(candidate: ExplainedCandidate, begins: float) -> _Supply:
    limited = [
        quota
        for quota in candidate.quotas
        if quota.status["limit"] is not None and quota.status["source"] != LimitSource.UNKNOWN
    ]
    days = [quota for quota in limited if quota.metric.is_daily]
    return _Supply(
        begins=begins,
        windows=tuple(_window(quota) for quota in limited if not quota.metric.is_daily),
        today=min((_left(quota) for quota in days), default=math.inf),
        daily=min((_limit(quota) for quota in days), default=math.inf),
        ends=min((quota.status["reset_in_seconds"] for quota in days), default=math.inf),
    )


def _window(quota: ExplainedQuota) -> _Window:
    status = quota.status
    first = status["reset_in_seconds"] if quota.fits_in is None else quota.fits_in
    steady = status["refill"] == Refill.STEADY
    seconds = (status["window_seconds"] or 0.0) + GUARD
    return _Window(
        limit=_limit(quota),
        left=int(quota.fits) if steady else _left(quota),  # of a bucket, whose size is not told
        seconds=seconds,
        first=first,
        back=min(max(status["reset_in_seconds"], first), seconds),
        steady=steady,
    )


def _limit(quota: ExplainedQuota) -> int:
    return (quota.status["limit"] or 0) // max(quota.amount, 1)


def _left(quota: ExplainedQuota) -> int:
    return (quota.status["remaining"] or 0) // max(quota.amount, 1)


def _seconds_until(supplies: Sequence[_Supply], needed: float) -> float | None:
    """Return after how many seconds they have admitted so many requests together; None if not in a year."""

    def enough(seconds: float) -> bool:
        # Half a request stands for what is lost by rounding.
        return sum(supply.admits(seconds) for supply in supplies) >= needed - 0.5

    if needed <= 0 or enough(0.0):
        return 0.0
    early, late = 0.0, 1.0
    while not enough(late):
        early, late = late, late * 2
        if early > _LONGEST:
            return None
    while late - early > _NEAR:
        middle = (early + late) / 2
        early, late = (early, middle) if enough(middle) else (middle, late)
    return late
