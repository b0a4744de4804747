"""The arithmetic of quotas: what is taken, what fits, and when it comes back.

Pure Python without I/O or locks, for stores that decide in Python. Times are whole microseconds since the
Unix epoch, so that stores in every language compute the same; :data:`~llm_router.domain.calendar.NEVER`
stands for a time that does not come.
"""

from llm_router.stores.ledger.base import Ledger
from llm_router.stores.ledger.bounds import MAX_TTL, MAX_TTL_MICROSECONDS, bounded, lifetime
from llm_router.stores.ledger.cooldowns import (
    due_cooldowns,
    forgotten_at,
    impose,
    latest_cooldown,
    moved_back,
    probed,
)
from llm_router.stores.ledger.ledgers import (
    EXACT_LIMIT,
    MAX_ENTRIES,
    SLICES,
    DailyLedger,
    RollingLedger,
    SteadyLedger,
)
from llm_router.stores.ledger.limits import (
    StoredLimit,
    learn,
    learnt_terms,
    read_learnt,
    remembered,
    write_learnt,
)
from llm_router.stores.ledger.quota_set import (
    QuotaLedger,
    QuotaSet,
    carry_over,
    learnt_quota,
    look,
    make_ledger,
    terms_in_force,
)

__all__ = [
    "EXACT_LIMIT",
    "MAX_ENTRIES",
    "MAX_TTL",
    "MAX_TTL_MICROSECONDS",
    "SLICES",
    "DailyLedger",
    "Ledger",
    "QuotaLedger",
    "QuotaSet",
    "RollingLedger",
    "SteadyLedger",
    "StoredLimit",
    "bounded",
    "carry_over",
    "due_cooldowns",
    "forgotten_at",
    "impose",
    "latest_cooldown",
    "learn",
    "learnt_quota",
    "learnt_terms",
    "lifetime",
    "look",
    "make_ledger",
    "moved_back",
    "probed",
    "read_learnt",
    "remembered",
    "terms_in_force",
    "write_learnt",
]
