"""Processes announce themselves on calls that are made anyway; each share is one over their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router import Cooldown, Demand
from llm_router.stores.failover import FailoverStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, Remote, granted, settle_down
else:
    from llm_router_tests_remote import OUTAGE, Remote, granted, settle_down


@pytest.mark.parametrize(("peers", "share"), [(1, 36), (4, 9), (12, 3)])
async def test_the_share_is_one_over_the_processes_alive(
    remote: Remote, pools: Pools, clock: ManualClock, peers: int, share: int
) -> None:
    """As many as the store counted last."""
    remote.peers, limited, other = peers, pools.one(rpm=36), pools.one(rpm=36)
    front = FailoverStore(remote, clock=clock)
    await granted(front, other, 1, "a")
    await settle_down()
    remote.fail(OUTAGE)
    assert await granted(front, limited, 50, "b") == share
    await front.aclose()


@pytest.mark.parametrize(("peers", "share"), [(1, 9), (4, 9), (12, 3)])
@pytest.mark.parametrize("shift", [61.0, -1.0])
async def test_a_number_of_processes_that_is_old_is_not_believed(
    remote: Remote, pools: Pools, clock: ManualClock, peers: int, share: int, shift: float
) -> None:
    """A process that idled for a minute takes a quarter, or less if they were more than four."""
    remote.peers, limited = peers, pools.one(rpm=36)
    front = FailoverStore(remote, clock=clock)
    await granted(front, pools.one(rpm=36), 1, "a")
    await settle_down()
    remote.fail(OUTAGE)
    clock._now += shift
    assert await granted(front, limited, 50, "b") == share
    await front.aclose()


@pytest.mark.parametrize("call", ["settle", "release", "snapshot", "cool_down", "reserve"])
async def test_processes_announce_themselves_on_any_call(
    remote: Remote, pools: Pools, clock: ManualClock, call: str
) -> None:
    """So a process that only ends what it began counts as alive."""
    front, limited = FailoverStore(remote, clock=clock), pools.one(rpm=None)
    await granted(front, limited, 1, "a")
    await settle_down()
    clock.shift(11.0)
    match call:
        case "settle":
            await front.settle("a0", Demand(1, 1))
        case "release":
            await front.release("a0")
        case "snapshot":
            await front.snapshot([limited])
        case "cool_down":
            await front.cool_down(Cooldown.lift(limited.model_scope))
        case _:
            await granted(front, limited, 1, "b")
    await settle_down()
    assert remote.calls.count("announce") == 2
    await front.aclose()


async def test_processes_announce_themselves_every_ten_seconds(
    remote: Remote, pools: Pools, clock: ManualClock
) -> None:
    """On calls that are made anyway, a little more often at first; a clock that jumps delays none."""
    front, limited = FailoverStore(remote, clock=clock), pools.one(rpm=None)
    for n in range(120):
        await granted(front, limited, 3, f"{n}-")
        await settle_down()
        clock.shift(1.0)
    assert 12 <= remote.calls.count("announce") <= 16
    clock._now -= 86_400.0
    await granted(front, limited, 1, "back")
    await settle_down()
    assert 13 <= remote.calls.count("announce") <= 17
    await front.aclose()
