"""The arithmetic of one quota: what is taken, what fits, and when it comes back.

Pure Python without I/O or locks, for stores that decide in Python. Times are whole microseconds since the
Unix epoch, so that every store, whatever its language, reckons alike; :data:`NEVER` stands for a moment that
does not come.
"""

from llm_router.domain.calendar import microseconds, midnights, seconds
from llm_router.stores.ledger.base import Ledger
from llm_router.stores.ledger.books import (
    Book,
    Shelf,
    latest_cooldown,
    learnt_quota,
    make_ledger,
    terms_in_force,
)
from llm_router.stores.ledger.daily import DailyLedger
from llm_router.stores.ledger.rolling import EXACT_LIMIT, MOST_ENTRIES, SLICES, RollingLedger
from llm_router.stores.ledger.steady import SteadyLedger

__all__ = [
    "EXACT_LIMIT",
    "MOST_ENTRIES",
    "SLICES",
    "Book",
    "DailyLedger",
    "Ledger",
    "RollingLedger",
    "Shelf",
    "SteadyLedger",
    "latest_cooldown",
    "learnt_quota",
    "make_ledger",
    "microseconds",
    "midnights",
    "seconds",
    "terms_in_force",
]
