"""The contract of :class:`~llm_router.stores.RateLimitStore`, as tests to run on a store of one's own.

Subclass :class:`StoreContract` in a test module, say how the store is opened, and let pytest (with
pytest-asyncio in auto mode) collect it::

    import pytest

    # Before the import: it makes failures readable.
    pytest.register_assert_rewrite("llm_router.testing.store_contract")

    from contextlib import asynccontextmanager
    from llm_router.testing.store_contract import StoreContract

    class TestMyStore(StoreContract):
        @asynccontextmanager
        async def open_store(self, clock):
            store = MyStore(clock=clock)
            yield store
            await store.aclose()

Time moves only through the :class:`~llm_router.testing.clock.ManualClock` that ``open_store`` is given: the
store must read it and nothing else. No test sleeps.
"""

from __future__ import annotations

from llm_router.testing.store_contract.cooldowns import CooldownContract
from llm_router.testing.store_contract.daily import DailyContract
from llm_router.testing.store_contract.decisions import DecisionContract
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
    SharingContract,
):
    """Everything that a store promises. Override ``open_store``, and ``second_store`` for shared state."""
