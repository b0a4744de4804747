"""A day that a refusal has ended is shown as full, however little of it is counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from llm_router import Exclusion, Metric, ProviderError, Quota, Router
from llm_router.cli.words import fraction
from llm_router.errors import QuotaViolation
from llm_router.stores.urls import open_store
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


def day_429(metric: Metric = Metric.RPD, limit: int | None = 20) -> ProviderError:
    """Return a refusal of the day that states its limit."""
    return ProviderError(
        "spent", kind="quota", code=429, charged=False, violations=(QuotaViolation(metric, limit),)
    )


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Name a store of each kind."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/state.sqlite3"


async def test_a_fresh_router_that_is_refused_at_once(
    store_url: str, pools: Pools, provider: FakeProvider, clock: ManualClock
) -> None:
    """Statuses and explain call the day full until the end of the cooldown; the store counts nothing."""
    provider.script(day_429())
    deployment = pools.one(rpm=15)  # of its day, nobody has set a limit
    store = open_store(store_url, clock=clock)
    async with Router([deployment], store=store, provider=provider, clock=clock) as router:
        assert not (await router.send("x")).success
        [row] = await router.get_all_key_statuses()
        [found] = (await router.explain("x")).candidates
        [snapshot] = await store.snapshot([deployment])
        assert snapshot.cooldown is not None
        assert [quota.used for quota in snapshot.quotas] == [0, 0]
        rpm, rpd = row["limits"]["rpm"], row["limits"]["rpd"]
        assert (row["state"], row["reason"]) == ("cooling_down", "daily quota spent, says the provider")
        assert row["spent"] == ["rpd"]
        assert row["room_in"] == pytest.approx(row["usable_in_seconds"])
        assert (rpd["used"], rpd["limit"], rpd["remaining"]) == (0, 20, 0)
        assert rpd["full_until"] == pytest.approx(snapshot.cooldown.until)
        assert (rpd["used_up_in_seconds"], fraction(rpd)) == (0.0, "full/20!")
        assert (rpm["full_until"], rpm["remaining"]) == (None, 15)
        minute, day = found.quotas
        assert (minute.fits, minute.remaining) == (True, 1.0)
        assert (day.fits, day.remaining) == (False, 0.0)
        assert day.fits_in == pytest.approx(found.usable_in)
        assert str(day) == "rpd ≥0/20 (stated by the provider 0 s ago; full, says the provider)"
        assert found.remaining == 0.0
        await router.keys.lift(deployment.key.key_id)
        [row] = await router.get_all_key_statuses()
        assert (row["state"], row["spent"]) == ("ready", [])
    await store.aclose()


@pytest.mark.parametrize("delay", [30.0 + number / 3e6 for number in range(12)])
async def test_what_cools_down_is_not_called_parked(
    pools: Pools, provider: FakeProvider, clock: ManualClock, delay: float
) -> None:
    """A store rounds the end of a cooldown; that this process looks again a moment later says nothing."""
    refusal = day_429()
    refusal.retry_delay = delay
    provider.script(refusal)
    async with Router([pools.one(rpd=500)], provider=provider, clock=clock) as router:
        await router.send("x")
        [found] = (await router.explain("x")).candidates
    assert found.exclusion is Exclusion.COOLING_DOWN


async def test_of_two_quotas_of_a_day_the_refused_one_is_full(
    pools: Pools, provider: FakeProvider, clock: ManualClock
) -> None:
    """That is the one of which was learnt last; once the cooldown ends, it is not any more."""
    provider.script(day_429(Metric.TPD, 9_000))
    quotas = Quota(Metric.RPD, 500), Quota(Metric.TPD, 10_000)
    deployment = attrs.evolve(pools.one(), quotas=quotas)
    async with Router([deployment], provider=provider, clock=clock) as router:
        await router.send("x")
        [row] = await router.get_all_key_statuses()
        assert row["spent"] == ["tpd"]
        assert row["limits"]["rpd"]["remaining"] == 500
        await clock.advance((row["usable_in_seconds"] or 0.0) + 0.1)
        [row] = await router.get_all_key_statuses()
        assert (row["spent"], row["limits"]["tpd"]["full_until"]) == ([], None)
