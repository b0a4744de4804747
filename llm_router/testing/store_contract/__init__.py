"""The contract of :class:`~llm_router.stores.RateLimitStore`, as tests for a store of your own.

Subclass :class:`StoreContract` in a test module, override ``open_store``, and let pytest (with pytest-asyncio
in auto mode) collect it::

    import pytest

    # Before the import, so that failures show the values compared.
    pytest.register_assert_rewrite("llm_router.testing.store_contract")

    from contextlib import asynccontextmanager
    from llm_router.testing.store_contract import StoreContract

    class TestMyStore(StoreContract):
        @asynccontextmanager
        async def open_store(self, clock):
            store = MyStore(clock=clock)
            yield store
            await store.aclose()

Time only moves through the :class:`~llm_router.testing.clock.ManualClock` that is passed to ``open_store``:
the store must take the time from it and from nowhere else. No test sleeps.
"""

from __future__ import annotations

from llm_router.testing.store_contract.charges import ChargeContract
from llm_router.testing.store_contract.cooldowns import CooldownContract
from llm_router.testing.store_contract.daily import DailyContract
from llm_router.testing.store_contract.decisions import DecisionContract
from llm_router.testing.store_contract.half_open import HalfOpenContract
from llm_router.testing.store_contract.limits import LimitContract
from llm_router.testing.store_contract.reservations import ReservationContract
from llm_router.testing.store_contract.rolling import RollingContract
from llm_router.testing.store_contract.sharing import SharingContract
from llm_router.testing.store_contract.steady import SteadyContract

__all__ = ["StoreContract"]


class StoreContract(
    RollingContract,
    SteadyContract,
    DailyContract,
    DecisionContract,
    ReservationContract,
    CooldownContract,
    LimitContract,
    ChargeContract,
    HalfOpenContract,
    SharingContract,
):
    """Everything that a store promises. Override ``open_store``, and ``second_store`` if state is shared."""
