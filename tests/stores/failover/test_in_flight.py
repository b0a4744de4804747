"""What the store grants while this process has begun to count alone counts there, too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Demand
from llm_router.errors import StoreUnavailableError
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, Remote, granted, settle_down
else:
    from llm_router_tests_remote import OUTAGE, Remote, granted, settle_down


class Slow(Remote):
    """A store whose replies to some reserves are under way for as long as a test likes."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.arrived = asyncio.Event()

    async def reserve(self, reservation_id: str, *args: Any) -> Decision:
        decision = await super().reserve(reservation_id, *args)
        if reservation_id.startswith("slow"):
            await self.arrived.wait()
        return decision


@pytest.fixture
def remote(clock: ManualClock) -> Slow:
    return Slow(clock)


async def test_a_reply_that_arrives_in_an_outage_counts(
    front: FailoverStore, remote: Slow, pools: Pools
) -> None:
    """A share of 20 is 5: three of them were granted by the store, whose replies came late."""
    limited = pools.one(rpm=20)
    slow = asyncio.gather(*(granted(front, limited, 1, f"slow{n}") for n in range(3)))
    await asyncio.sleep(0)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "a") == 1
    remote.arrived.set()
    assert await slow == [1, 1, 1]
    assert await granted(front, limited, 9, "b") == 1


async def test_what_it_used_counts(front: FailoverStore, remote: Slow, pools: Pools) -> None:
    """A share of 400 is 100: it used 50 of them, and not the 10 that it was estimated at."""
    limited = pools.one(rpm=None, tpm=400)
    slow = asyncio.create_task(granted(front, limited, 1, "slow"))
    await asyncio.sleep(0)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 1, "a") == 1
    remote.arrived.set()
    assert await slow == 1
    await front.settle("slow0", Demand(1, 50))
    assert await granted(front, limited, 40, "b") == 4


async def test_what_was_granted_alone_counts_where_the_clock_was_set(
    front: FailoverStore, remote: Slow, pools: Pools, clock: ManualClock
) -> None:
    """Days begin at other times then: the share is counted anew, and what is settled late counts in it."""
    limited = pools.one(rpm=None, tpm=400)
    remote.fail(OUTAGE)
    assert await granted(front, limited, 2, "a") == 2
    clock.jump(-3_600.0)
    assert await granted(front, limited, 1, "b") == 1
    await front.settle("a0", Demand(1, 50))
    assert await granted(front, limited, 40, "c") == 3


@pytest.mark.parametrize(("cut", "is_alone"), [(3, False), (4, True)])
async def test_only_the_connection_was_lost(
    front: FailoverStore, remote: Slow, pools: Pools, cut: int, is_alone: bool
) -> None:
    """A store whose connections are cut three times in a row is asked again; the fourth time it is away."""
    limited = pools.one(rpm=20)
    assert await granted(front, limited, 1, "a") == 1
    await settle_down()
    remote.once = [StoreUnavailableError("the connection was closed")] * cut
    assert await granted(front, limited, 1, "b") == 1
    assert (front.trouble is not None) is is_alone
