"""The protocol that every kind of ledger implements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llm_router.domain.quota import Quota

__all__ = ["Ledger"]


class Ledger(Protocol):
    """What is taken from one quota. Amounts are in requests or tokens, times in microseconds.

    A taking is identified by its *mark*, a plain integer that is also valid in a ledger that loads the state
    of this one. Where the clock is behind what was taken, because it was set back, nothing comes back early,
    and nothing is refused for longer than a window after the first call that sees it (or until the end of the
    day by the corrected clock). It is two windows where the clock has passed what was taken before the next
    call: a clock that was corrected looks the same, and must not give back early.
    Where it is set forward, what was taken comes back as much earlier: the time that a suspended machine has
    slept through looks the same, and has passed.
    An amount of 0 takes nothing, and moves nothing that was taken; but its mark is still needed: more may be
    used than estimated, which counts as taken then.
    """

    limit: int
    """Requests or tokens per window."""

    capacity: int
    """The most that can be taken at once: the limit, except for a steady ledger."""

    moved: bool
    """Whether it changed because the clock was set back, and must be stored even if nothing is taken; a
    store sets it to False."""

    successor: Ledger | None
    """The one that took its place because the quota refills in another way; marks are not valid there."""

    @property
    def taken(self) -> int:
        """What is used, without computing anything: exact right after a ``take``, too high later.

        So where ``taken + amount <= capacity``, the amount fits, and ``room_at`` need not be called.
        """
        ...

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else when it will if nothing more is taken, or NEVER."""
        ...

    def take(self, amount: int, now: int) -> int:
        """Take ``amount``, which fits, and return the mark by which it can be corrected."""
        ...

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark`` by ``change``, as if it had been taken that way.

        Nothing ever falls below zero, and a mark that no longer matters changes nothing.
        """
        ...

    def charge(self, amount: int, at: int, now: int) -> None:
        """Count ``amount`` as taken at ``at``, at the latest now, whether or not it fits.

        It comes back when it would if it had been taken then, or later; it counts nothing if it would have
        come back by now.
        """
        ...

    def used(self, now: int) -> int:
        """Return what is taken and has not come back; more than the limit after an upward correction."""
        ...

    def resets_at(self, now: int) -> int:
        """Return when all of it is back if nothing more is taken; ``now`` if nothing is taken."""
        ...

    def taken_since(self, since: int, now: int) -> tuple[int, int]:
        """Return the most that can have been taken since a time and still count, and when the last of it was.

        For a ledger of another kind that takes the place of this one.
        """
        ...

    def configure(self, quota: Quota, limit: int) -> None:
        """Continue under other limits, keeping what is taken."""
        ...

    def dump(self) -> Sequence[float]:
        """Return the state as plain numbers (integers except for a steady debt), for :meth:`load`."""
        ...

    def load(self, state: Sequence[float]) -> None:
        """Replace the state with one that a ledger of the same kind dumped.

        Raises:
            ValueError, OverflowError: The state makes no sense.
        """
        ...
