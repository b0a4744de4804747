"""When a waiting line asks, so that processes that wait for the same quota get equal shares of it."""

from __future__ import annotations

import math
import random

from llm_router.engine.backoff import SHORTEST_SLEEP, ProbeBackoff

__all__ = ["LONGEST_REST", "PACE", "SPREAD", "Turns"]

SPREAD = 0.05
"""Most seconds by which a line asks later than the time at which there should be room."""

PACE = 0.025
"""Seconds between the first two grants of a line out of quota that comes back at once."""

LONGEST_REST = 10.0
"""Longest mean rest after a grant, in seconds."""

_HASTE = 0.5
"""By what the spread is multiplied for each time the line has asked in vain since its last grant."""

_QUICKENING = 0.125
"""Seconds after the return of quota in which the pace rises to e times what it was, in all lines alike."""

_REST = 4.0
"""How long a line rests for each other one that it has met, in mean times between two returns of quota."""

_SOON = 2.0
"""Seconds between two returns of quota above which it costs little if every line asks each time."""

_SHORT = 0.25
"""The same below which a rest is short."""

_MANY = 6
"""Lines that came before this one, fewer of which may be chance."""

_FORGOTTEN = 120.0
"""Seconds after which it does not matter any more that others have competed."""


class Turns:
    """The turns of one line among those of other processes, which it cannot see.

    Every line knows when quota comes back, and the store grants it to the line that asks first. If that one
    could go on at once, and the others had to wait longer, it would win for ever. Here all go by one rule:

    * Each asks at a random moment shortly after the time that the store named. The more often it has asked
      in vain since its last grant, the earlier: so the line that has waited longest usually comes first.
    * After a grant it rests, the longer the more others it has met: so only a few lines ask for the same
      quota, and which ones they are changes.
    * Of quota that comes back at once it takes one after the other, in steps that begin slowly enough for
      the others to wake.

    A line that has not waited yet is not delayed, and one that meets no others never rests.
    """

    __slots__ = (
        "_aimed_at",
        "_backoff",
        "_crowd",
        "_crowd_before",
        "_gaps",
        "_ready_at",
        "_returned_at",
        "_seen_at",
        "_vain",
        "_waited",
    )

    def __init__(self) -> None:
        self._backoff = ProbeBackoff()
        self._forget()
        self._seen_at = -math.inf  # until when it is known to have asked or waited
        self._aimed_at = -math.inf  # when the store last said that there would be room
        self._returned_at = -math.inf  # when the quota that is being granted came back

    def _forget(self) -> None:
        self._waited = False  # whether a wait has ended
        self._vain = 0  # tries at a time at which there should have been room, since the last grant
        self._crowd = 0  # the last of them that followed each other soon,
        self._gaps = 0.0  # and the seconds between the returns of quota that they missed
        self._crowd_before = 0  # what the crowd was at the grant before
        self._ready_at = -math.inf  # when the next request may ask

    def next(self, now: float, deadline: float = math.inf) -> float:
        """Return from when on the next request in line may ask; the past for at once.

        It is early enough that the request's deadline does not pass unused.
        """
        rest = self._ready_at - now
        if rest > 1.5 * LONGEST_REST:  # the clock was set back
            return now
        return min(self._ready_at, _in_time(now, deadline))

    def refused(self, now: float, retry_at: float, deadline: float = math.inf, *, is_due: bool) -> float:
        """Note that there is no room before ``retry_at``; return when to try again.

        That is not before ``retry_at``, and otherwise often enough that the deadline does not pass unused.

        Args:
            now: Seconds since the epoch, like all times here.
            retry_at: When there should be room.
            deadline: When the request stops waiting.
            is_due: Whether the try was made because there should have been room by now.
        """
        self._notice(now)
        if retry_at - now > SPREAD:
            self._returned_at = retry_at
        if is_due:
            self._waited = True
            self._note_rival(retry_at - self._aimed_at)
        self._aimed_at = retry_at
        if retry_at < math.inf:
            self._seen_at = max(now, retry_at)
        if retry_at <= now:
            if is_due:
                self._backoff.failed()
            return self._backoff.until(now, retry_at, deadline)
        self._backoff = ProbeBackoff()
        if not self._waited:
            return retry_at
        # Drawn afresh by every line each time: none has an earlier place than another.
        at = retry_at + random.uniform(0.0, SPREAD) * _HASTE**self._vain  # noqa: S311
        at = max(at, now + SHORTEST_SLEEP * _around_one())
        return max(retry_at, min(at, _in_time(now, deadline)))

    def granted(self, now: float, *, is_due: bool) -> None:
        """Note a grant, after which the line rests.

        It rests for four times as long as it takes quota to come back, for each line that came before it but
        one: so of 32 lines about 10 ask for the same quota, and of 8 about 3.

        Args:
            now: Seconds since the epoch.
            is_due: Whether the try was made because there should have been room by now.
        """
        self._notice(now)
        self._backoff = ProbeBackoff()
        self._waited = self._waited or is_due
        if not self._waited:
            return
        # It goes by the time that all lines know, not by the grants of this one: none is ahead of another.
        pace = PACE * math.exp(-max(now - self._returned_at, 0.0) / _QUICKENING)
        rest = self._rest()
        if rest > pace:
            self._ready_at = now + rest * _around_one()
        else:
            self._ready_at = max(self._ready_at, now) + pace
        self._crowd_before = self._crowd
        self._vain, self._crowd, self._gaps = 0, 0, 0.0

    def _rest(self) -> float:
        """Return how long to rest for the sake of the lines that came before this one."""
        if not self._crowd:
            return 0.0
        gap, others = self._gaps / self._crowd, self._crowd
        if others < _MANY or gap > _SHORT:  # it takes two grants in a row that point to others
            others = min(others, self._crowd_before)
        return min(_REST * gap * max(others - 1, 0), LONGEST_REST)

    def _note_rival(self, gap: float) -> None:
        """Note that another process took quota, ``gap`` seconds before the next comes back."""
        if gap <= 0.0:  # no: the clocks differ, or what should have come back has not
            return
        self._vain += 1
        if gap > _SOON:
            self._crowd, self._gaps = 0, 0.0
        else:
            self._crowd += 1
            self._gaps += gap

    def _notice(self, now: float) -> None:
        if now - self._seen_at > _FORGOTTEN:
            self._forget()
        self._seen_at = now


def _in_time(now: float, deadline: float) -> float:
    return now + max((deadline - now) / 2, SHORTEST_SLEEP)


def _around_one() -> float:
    return random.uniform(0.5, 1.5)  # noqa: S311 - keeps processes out of step
