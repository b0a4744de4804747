"""What happens while a store fails, and when it answers again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest

from llm_router import (
    ConfigError,
    Cooldown,
    Demand,
    Deployment,
    MemoryStore,
    RateLimitStore,
    Router,
    StoreUnavailableError,
)
from llm_router.stores import Decision, DeploymentSnapshot
from llm_router.stores.base import FrontingStore
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


class Flaky(MemoryStore):
    """A store that can be switched off."""

    down = False
    calls = 0

    def _answer(self) -> None:
        self.calls += 1
        if self.down:
            raise StoreUnavailableError("no answer within 2 s")

    async def reserve(self, *args: Any) -> Decision:
        self._answer()
        return await super().reserve(*args)

    async def settle(self, *args: Any) -> None:
        self._answer()
        return await super().settle(*args)

    async def charge(self, *args: Any) -> float:
        self._answer()
        return await super().charge(*args)

    async def cool_down(self, *args: Any) -> None:
        self._answer()
        return await super().cool_down(*args)

    async def snapshot(self, *args: Any) -> list[DeploymentSnapshot]:
        self._answer()
        return await super().snapshot(*args)


@pytest.fixture
def behind(clock: ManualClock) -> Flaky:
    return Flaky(clock=clock)


@pytest.fixture
def make(behind: Flaky, clock: ManualClock) -> Callable[..., FailoverStore]:
    def make(policy: Any = "local", **options: Any) -> FailoverStore:
        return FailoverStore(behind, policy=policy, clock=clock, **options)

    return make


async def grants(store: RateLimitStore, deployment: Deployment, count: int, tag: str = "r") -> int:
    decisions = [await store.reserve(f"{tag}{n}", [deployment], Demand(1, 10), 60) for n in range(count)]
    return sum(decision.deployment is deployment for decision in decisions)


async def recover(store: RateLimitStore, clock: ManualClock, seconds: int = 60) -> None:
    clock.shift(seconds)
    await store.snapshot([])  # any call notices that a probe is due
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_healthy_store_is_all_there_is(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools
) -> None:
    """While the store answers, nothing else is used, and its whole quota counts."""
    store, deployment = make(), pools.one(rpm=8)
    assert await grants(store, deployment, 10) == 8
    assert store.trouble is None


async def test_it_is_a_fronting_store(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools
) -> None:
    """It shows the store behind it, and why it has taken over; other stores are not fronting stores."""
    store = make()
    assert isinstance(store, FrontingStore)
    assert not isinstance(behind, FrontingStore)
    assert (store.behind, store.trouble) == (behind, None)
    behind.down = True
    await grants(store, pools.one(), 1)
    assert store.trouble == "no answer within 2 s"


async def test_local_takes_its_share_of_every_quota(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools
) -> None:
    """On its own, a process grants a quarter of the limit, and names the actual deployment."""
    store, deployment = make(), pools.one(rpm=20)
    behind.down = True
    assert await grants(store, deployment, 10) == 5
    decision = await store.reserve("x", [deployment], Demand(1, 10), 60)
    assert decision.refusals[0].deployment is deployment


@pytest.mark.parametrize(("limit", "minutes"), [(2, 2), (1, 4)])
async def test_a_share_below_one_is_one_in_a_longer_window(
    make: Callable[..., FailoverStore],
    behind: Flaky,
    pools: Pools,
    clock: ManualClock,
    limit: int,
    minutes: int,
) -> None:
    """A quarter of 2 per minute is 1 in two minutes: four processes together keep within the limit."""
    store, deployment = make(), pools.one(rpm=limit)
    behind.down = True
    assert await grants(store, deployment, 3, "a") == 1
    clock.shift(minutes * 60 - 1)
    assert await grants(store, deployment, 3, "b") == 0
    clock.shift(2)
    assert await grants(store, deployment, 3, "c") == 1


async def test_a_reserve_that_fails_in_a_store_that_works_is_an_error(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no refusal, of which a search would expect what it refuses."""
    monkeypatch.setattr(behind, "reserve", AsyncMock(side_effect=StoreUnavailableError("not this one")))
    store = make()
    with pytest.raises(StoreUnavailableError, match="not this one"):
        await store.reserve("r", [pools.one()], Demand(1, 10), 60)
    assert store.trouble is None
    async with Router([pools.one()], store=store, provider=FakeProvider()) as router:
        response = await router.send("x")
    assert str(response.error).endswith("not this one")


async def test_closed_refuses_at_once(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock
) -> None:
    """After a failure and three looks no caller waits: the store is only tried in the background."""
    store, deployment = make("closed"), pools.one()
    behind.down = True
    for _ in range(5):
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.reserve("x", [deployment], Demand(), 60)
    assert behind.calls == 4


async def test_open_grants_everything(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools
) -> None:
    """Without limits means without limits."""
    store, deployment = make("open"), pools.one(rpm=1)
    behind.down = True
    assert await grants(store, deployment, 50) == 50


@pytest.mark.parametrize("policy", ["local", "open"])
async def test_it_returns_by_itself_and_carries_over_what_it_spent(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock, policy: str
) -> None:
    """When the store answers again, it learns what was spent meanwhile."""
    store, deployment = make(policy), pools.one(rpm=20, tpm=100_000)
    behind.down = True
    assert await grants(store, deployment, 4) == 4
    for number in range(4):
        await store.settle(f"r{number}", Demand(1, 500))
    behind.down = False
    await recover(store, clock)
    assert store.trouble is None
    used = {quota.metric.value: quota.used for quota in (await behind.snapshot([deployment]))[0].quotas}
    assert used == {"rpm": 4, "tpm": 2_000}
    clock.shift(60.4)
    assert await grants(store, deployment, 30, "after") == 20


async def test_what_is_in_flight_when_it_returns_is_carried_over_on_settling(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock
) -> None:
    """A reservation made here is settled here, and reported to the store."""
    store, deployment = make(), pools.one(rpm=20)
    behind.down = True
    await grants(store, deployment, 1)
    behind.down = False
    await recover(store, clock)
    await store.settle("r0", Demand(1, 10))
    assert (await behind.snapshot([deployment]))[0].quotas[0].used == 1


async def test_releases_carry_nothing(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock
) -> None:
    """What was given back was not spent."""
    store, deployment = make(), pools.one(rpm=20)
    behind.down = True
    await grants(store, deployment, 1)
    await store.release("r0")
    behind.down = False
    await recover(store, clock)
    assert (await behind.snapshot([deployment]))[0].quotas[0].used == 0


async def test_cooldowns_that_began_meanwhile_are_shared_afterwards(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock
) -> None:
    """A key that died during the outage is known to all processes afterwards."""
    store, deployment = make(), pools.one()
    behind.down = True
    await grants(store, deployment, 1)
    await store.cool_down(Cooldown(deployment.key_scope, float("inf"), "key: dead"))
    assert (await store.snapshot([deployment]))[0].cooldown is not None
    behind.down = False
    await recover(store, clock)
    [snapshot] = await behind.snapshot([deployment])
    assert snapshot.cooldown is not None
    assert snapshot.cooldown.reason == "key: dead"


async def test_one_log_line_per_change_of_state(
    make: Callable[..., FailoverStore],
    behind: Flaky,
    pools: Pools,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many calls fail, the log has one line for taking over and one for returning."""
    store, deployment = make(), pools.one(rpm=None)
    behind.down = True
    await grants(store, deployment, 200)
    for _ in range(5):
        await recover(store, clock, 31)
    assert len(caplog.records) == 1
    behind.down = False
    await recover(store, clock, 31)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "the store fails",
        "the store answers again",
    ]


async def test_probes_are_rare_and_in_the_background(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock
) -> None:
    """In 10 minutes a dead store is tried about twenty times, however many calls are made."""
    store, deployment = make(), pools.one(rpm=None)
    behind.down = True
    for number in range(600):
        await grants(store, deployment, 3, f"{number}-")
        await asyncio.sleep(0)
        clock.shift(1)
    assert behind.calls < 40


async def test_nothing_is_kept_for_ever(
    make: Callable[..., FailoverStore], behind: Flaky, pools: Pools, clock: ManualClock
) -> None:
    """After an outage no reservation and nothing to report is left behind."""
    store, deployment = make(), pools.one(rpm=None)
    behind.down = True
    await grants(store, deployment, 50)
    for number in range(50):
        await store.settle(f"r{number}", Demand(1, 1))
    behind.down = False
    await recover(store, clock)
    assert store._own.open_reservations == 0
    assert not any(record.is_missing() for record in store._own)
    assert (store._backlog.settlements, bool(store._backlog.cooldowns)) == (0, False)
    await store.aclose()


def test_wrong_policies_are_refused(make: Callable[..., FailoverStore]) -> None:
    """A misspelt policy or a wrong share is reported at once."""
    with pytest.raises(ConfigError, match="on_store_failure"):
        make("shut")
    with pytest.raises(ConfigError, match="local_share"):
        make(local_share=0)
