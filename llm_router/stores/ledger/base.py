"""What every kind of ledger does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from llm_router.domain.quota import Quota

__all__ = ["Ledger"]


class Ledger(Protocol):
    """One quota's book. ``amount`` is in requests or tokens, ``now`` and every moment in microseconds.

    A taking is named by a *mark*, a plain integer that means the same to a ledger loaded elsewhere. The mark
    of an amount of 0, which takes nothing, is asked for by ``take(0, now)``: what was used may be more.
    """

    limit: int
    """Requests or tokens per window."""

    capacity: int
    """The most that can be taken at once: the limit, but for a steady ledger."""

    @property
    def taken(self) -> int:
        """What is used, told without work: exact right after a ``take``, later rather too much.

        So where ``taken + amount <= capacity``, the amount fits, and ``room_at`` need not be asked.
        """
        ...

    def room_at(self, amount: int, now: int) -> int:
        """Return ``now`` if ``amount`` fits, else the moment it will if nobody takes more, or NEVER."""
        ...

    def take(self, amount: int, now: int) -> int:
        """Take ``amount``, which fits, and return the mark by which it can be corrected."""
        ...

    def correct(self, mark: int, change: int, now: int) -> None:
        """Change what was taken at ``mark`` by ``change``, as if it had been taken so.

        Nothing ever falls below zero, and a mark that is of no consequence any more changes nothing.
        """
        ...

    def used(self, now: int) -> int:
        """Return what is taken and has not come back; more than the limit after a correction upwards."""
        ...

    def resets_at(self, now: int) -> int:
        """Return when all of it is back if nobody takes more; ``now`` when nothing is taken."""
        ...

    def configure(self, quota: Quota, limit: int) -> None:
        """Go on under other limits, keeping what is taken."""
        ...

    def dump(self) -> Sequence[float]:
        """Return the state as plain numbers (integers but for a steady debt), for :meth:`load`."""
        ...

    def load(self, state: Sequence[float]) -> None:
        """Take over the state that a ledger of the same kind dumped.

        Raises:
            ValueError, OverflowError: The state makes no sense.
        """
        ...
