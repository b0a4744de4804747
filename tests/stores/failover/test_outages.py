"""What is an outage, and of what: overload, a broken connection, a store that only reads, one shard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Cooldown, Demand, Deployment, Router
from llm_router.errors import StoreTimeoutError, StoreUnavailableError
from llm_router.stores import Decision
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.remote import OUTAGE, TIMEOUT, Remote, granted, settle_down
else:
    from llm_router_tests_remote import OUTAGE, TIMEOUT, Remote, granted, settle_down


async def test_overload_is_no_outage(front: FailoverStore, remote: Remote, pools: Pools) -> None:
    """A call that times out while another is answered is passed on; the process does not go alone."""
    limited = pools.one(rpm=20)
    for _ in range(5):
        remote.once = [TIMEOUT]
        with pytest.raises(StoreTimeoutError):
            await front.reserve("a", [limited], Demand(), 60.0)
    assert front.trouble is None
    remote.once = [TIMEOUT, TIMEOUT]
    assert (await front.reserve("b", [limited], Demand(), 60.0)).deployment is limited
    assert front.trouble == "no answer within 2 s"


async def test_a_send_outlasts_overload(
    remote: Remote, pools: Pools, clock: ManualClock, provider: FakeProvider
) -> None:
    """It backs off and tries again; where the overload stays, it says when to come back."""
    async with Router([pools.one()], store=remote, provider=provider, clock=clock) as router:
        remote.once = [TIMEOUT]
        sending = asyncio.create_task(router.send("x"))
        await clock.advance(2.0)
        assert (await sending).success
        monkeyed = remote.reserve

        async def overloaded(*args: Any) -> Decision:
            remote.once = [TIMEOUT]
            return await monkeyed(*args)

        remote.reserve = overloaded  # type: ignore[method-assign]
        sending = asyncio.create_task(router.send("x"))
        await clock.advance(10.0)
        response = await sending
    assert not response.success
    assert response.retry_after == 1.0
    assert "no answer within 2 s" in str(response.error)


async def test_a_connection_that_breaks_once_is_no_outage(
    front: FailoverStore, remote: Remote, pools: Pools
) -> None:
    """The store answers when it is asked again."""
    limited = pools.one(rpm=20)
    remote.once = [OUTAGE]
    assert (await front.reserve("a", [limited], Demand(), 60.0)).deployment is limited
    remote.once = [OUTAGE]
    await front.settle("a", Demand(1, 5))
    remote.once = [OUTAGE]
    await front.cool_down(Cooldown(limited.model_scope, 2e9, "rests"))
    remote.once = [OUTAGE]
    [snapshot] = await front.snapshot([limited])
    assert snapshot.cooldown is not None
    assert front.trouble is None
    assert not front._backlog.cooldowns


async def test_a_store_that_only_reads_is_in_trouble_once(
    front: FailoverStore, remote: Remote, pools: Pools, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Read-only or full for a minute: one change of state and back, not one for every probe."""
    limited = pools.one(rpm=None)
    remote.writes = StoreUnavailableError("is a read-only replica")
    for n in range(60):
        await granted(front, limited, 2, f"{n}-")
        await settle_down()
        clock.shift(1.0)
    remote.writes = None
    for n in range(60, 100):
        await granted(front, limited, 1, f"{n}-")
        await settle_down()
        clock.shift(1.0)
    messages = [record.getMessage().split(",")[0] for record in caplog.records]
    assert messages == ["the store fails", "the store answers again"]


class Divided(Remote):
    """A store of two shards, each of which may fail."""

    shards = 2

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.down: set[int] = set()

    def shard_of(self, deployment: Deployment) -> int:
        return int(deployment.model[-1])

    def _check(self, *deployments: Deployment) -> None:
        for shard in sorted(set(map(self.shard_of, deployments)) & self.down):
            raise StoreUnavailableError("cannot be reached", shard=shard)

    async def reserve(self, *args: Any) -> Decision:
        self._check(*args[1])
        return await super().reserve(*args)

    async def charge(self, *args: Any) -> float:
        self._check(args[2])
        return await super().charge(*args)


async def test_a_shard_that_is_down_takes_no_other_along(pools: Pools, clock: ManualClock) -> None:
    """The projects of the healthy one have their whole quota; those of the other a share."""
    remote = Divided(clock)
    front = FailoverStore(remote, clock=clock, local_share=0.25)
    well, ill = pools.one("model-0", rpm=20), pools.one("model-1", rpm=20)
    remote.down = {1}
    assert await granted(front, ill, 9, "a") == 5
    assert await granted(front, well, 30, "b") == 20
    trouble = front.trouble
    assert trouble == "cannot be reached (1 of 2 shards)"
    assert (await front.reserve("c", [ill, well], Demand(), 60.0)).deployment is None
    assert len(await front.snapshot([well, ill])) == 2
    remote.down = set()
    clock.shift(60.4)
    await granted(front, ill, 1, "d")
    await settle_down()
    assert front.trouble is None
    await front.aclose()
