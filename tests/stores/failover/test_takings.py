"""The ledger of what this process took: small, whole, and right when the clock is set back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router import Demand, Deployment, Metric, Quota
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, Remote, granted, recover, used
else:
    from llm_router_tests_remote import OUTAGE, Remote, granted, recover, used


async def test_a_clock_that_is_set_back_keeps_nothing_for_a_day(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """What was taken a day ahead counts as taken now, and comes back within a window."""
    limited = pools.one(rpm=20)
    clock.shift(86_400.0)
    assert await granted(front, limited, 3, "a") == 3
    clock._now -= 86_400.0
    assert await granted(front, limited, 1, "b") == 1
    clock.shift(61.0)
    assert await granted(front, limited, 1, "c") == 1
    remote.fail(OUTAGE)
    assert await granted(front, limited, 9, "d") == 4


@pytest.mark.slow
async def test_the_ledger_of_this_process_stays_small(
    front: FailoverStore, pools: Pools, clock: ManualClock
) -> None:
    """A hundred thousand requests over a day and over many keys leave a few hundred entries for each."""
    pool = [pools.one(rpm=10**6, rpd=10**6) for _ in range(3)]
    for n in range(20_000):
        await front.reserve(f"r{n}", [pool[n % 3]], Demand(1, 1), 60.0)
        if n % 7:
            await front.settle(f"r{n}", Demand(1, 2))
        clock.shift(4.3)
    assert front._own.open_reservations < 30
    assert all(len(record.entries) <= 481 for record in front._own)
    clock.shift(2 * 86_400.0)
    await front.reserve("last", [pool[0]], Demand(1, 1), 60.0)
    assert len(list(front._own)) == 1


async def test_what_is_charged_of_a_full_ledger_is_what_was_taken(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """Joining entries loses nothing, whatever is settled afterwards."""
    limited = Deployment(pools.one().key, "m", "light", quotas=(Quota(Metric.TPM, 10**9),))
    remote.fail(OUTAGE)
    taken = 0
    for n in range(3_000):
        decision = await front.reserve(f"r{n}", [limited], Demand(1, 10), 600.0)
        assert decision.deployment is limited
        clock.shift(0.0199)
    for n in range(0, 3_000, 2):
        await front.settle(f"r{n}", Demand(1, n))
        taken += n - 10
    clock._now -= 0.5  # within the second that may go unnoticed
    await recover(front, remote, clock, limited)
    assert await used(remote, limited) == {"tpm": 30_000 + taken}
