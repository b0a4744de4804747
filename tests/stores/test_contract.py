"""Every store fulfils the store contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router.testing.store_contract import StoreContract

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from llm_router.domain.clock import Clock
    from llm_router.stores import RateLimitStore


class TestContract(StoreContract):
    """The contract, on each backend of ``conftest.BACKENDS``."""

    @pytest.fixture(autouse=True)
    def _use(self, store_backend) -> None:
        self.backend = store_backend

    def open_store(self, clock: Clock) -> AbstractAsyncContextManager[RateLimitStore]:
        return self.backend.open(clock)

    def second_store(
        self, store: RateLimitStore, clock: Clock
    ) -> AbstractAsyncContextManager[RateLimitStore]:
        return self.backend.second(clock)
