"""What each key did, by day: counted by sends, added to the records in the background."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import InvalidRequestError, ProviderError, Reply, Router, StoreUnavailableError, Usage
from llm_router.records import MemoryRecords
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]
TODAY = {"day": "2027-01-15"}
NOTHING = {"requests": 0, "input_tokens": 0, "output_tokens": 0, "rate_limited": 0, "errors": 0}


class Records(MemoryRecords):
    """Records in memory that fail while ``fails`` is set."""

    fails: BaseException | None = None
    calls = 0

    async def add(
        self, space: str, name: str, amounts: Mapping[str, int], *, ttl: float
    ) -> Mapping[str, int]:
        self.calls += 1
        if self.fails is not None:
            raise self.fails
        return await super().add(space, name, amounts, ttl=ttl)

    async def counts(self, *args: Any, **kwargs: Any) -> Mapping[str, Mapping[str, int]]:
        if self.fails is not None:
            raise self.fails
        return await super().counts(*args, **kwargs)


async def todays(router: Router) -> list[Any]:
    return [row["today"] for row in await router.get_all_key_statuses()]


async def test_what_a_key_did_is_counted(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """Requests, tokens with thoughts, 429s and other errors, for each key and model, and by day."""
    pool = [pools.one("a", key_id="k/ö", rpm=None), pools.one("b", key_id="k/ö", rpm=None), pools.one("c")]
    async with make_router(pool, max_retries=0) as router:
        assert await todays(router) == [{**TODAY, **NOTHING}] * 3
        provider.script(Reply("yes", Usage(7, 2, 3)), Reply("yes", Usage(5, 1)))
        for _ in range(2):
            await router.send("x", model="a", fallback="none")
        provider.script(ProviderError("no", kind="quota", code=429, charged=False))
        await router.send("x", model="a", fallback="none")
        provider.script(ProviderError("no", kind="server", code=503))
        await router.send("x", model="b", fallback="none")
        async with router.stream("x", model="c") as stream:
            async for _ in stream:
                break
        a, b, c = await todays(router)
        assert a == {
            **TODAY,
            **NOTHING,
            "requests": 3,
            "input_tokens": 12,
            "output_tokens": 6,
            "rate_limited": 1,
        }
        assert b == {**TODAY, **NOTHING, "requests": 1, "errors": 1}
        assert (c["requests"], c["errors"]) == (1, 0)
        clock.shift(20 * 3600.0)
        assert await todays(router) == [{**NOTHING, "day": "2027-01-16"}] * 3
        [row, *_] = await router.get_all_key_statuses(days=3)
        assert [(day["day"], day["requests"]) for day in row["days"]] == [
            ("2027-01-16", 0),
            ("2027-01-15", 3),
            ("2027-01-14", 0),
        ]
        for wrong in (0, 36, 1.5, "many"):
            with pytest.raises(InvalidRequestError, match="days must be"):
                await router.get_all_key_statuses(days=wrong)  # type: ignore[arg-type]
        clock.shift(35 * 86_400.0)
        assert await router.records.counts("totals") == {}


async def test_the_background_adds_every_few_seconds_and_at_midnight(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """What is counted right before midnight belongs to that day; what waits for nothing has no timer."""
    records = Records(clock=clock)
    async with make_router([pools.one(key_id="k", rpm=None)], records=records) as router:
        for _ in range(3):
            await router.send("x")
        await clock.advance(4.9)
        assert records.calls == 0
        await clock.advance(0.2)
        assert await records.counts("totals") == {
            "2027-01-15 gemini k": {
                "requests:model-a": 3,
                "input_tokens:model-a": 3,
                "output_tokens:model-a": 21,
            }
        }
        await clock.advance(100.0)
        assert records.calls == 1
        await clock.advance(20 * 3600.0 - 107.0)
        await router.send("x")
        await clock.advance(2.0)
        await router.send("x")
        await clock.advance(5.0)
        counts = await records.counts("totals")
        assert [(name, each["requests:model-a"]) for name, each in counts.items()] == [
            ("2027-01-16 gemini k", 1),
            ("2027-01-15 gemini k", 4),
        ]
        await router.send("x")
    assert clock.pending <= 1  # the timer of the limits
    assert (await records.counts("totals"))["2027-01-16 gemini k"]["requests:model-a"] == 2


@pytest.mark.parametrize("error", [StoreUnavailableError("gone"), ZeroDivisionError("a bug of a user")])
async def test_records_that_fail_never_fail_a_send(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, error: Exception
) -> None:
    """They are tried again, less often, and what was counted meanwhile is not lost; statuses do without."""
    records = Records(clock=clock)
    records.fails = error
    async with make_router([pools.one(key_id="k", rpm=None)], records=records) as router:
        for _ in range(4):
            assert (await router.send("x")).success
            await clock.advance(10.0)
        assert records.calls == 2
        [row] = await router.get_all_key_statuses()
        assert (row["today"], row["days"], row["state"]) == (None, [], "ready")
        records.fails = None
        await clock.advance(60.0)
        [today] = await todays(router)
        assert today["requests"] == 4


async def test_what_others_wrote_and_odd_clocks_fail_nothing(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """Facts that cannot be read are none; a time that no calendar knows is no day."""
    async with make_router([pools.one(rpm=None)]) as router:
        await router.records.put("facts", "model:gemini:p:m", b'{"kind": 1}', ttl=60)
        assert (await router.health_check())["facts"] == []
        clock.jump(1e15)
        assert (await router.send("x")).success


async def test_what_a_provider_counts_may_be_anything(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, clock: ManualClock
) -> None:
    """It neither fails a send nor keeps its quota, and what cannot be kept does not hold up the rest."""
    long, odd = pools.one("m" * 600, rpm=None), pools.one("b", key_id="ü" * 400, rpm=None)
    async with make_router([long, odd]) as router:
        usage: Any = Usage(3, None)  # type: ignore[arg-type]
        provider.script(Reply("x", usage), Reply("x", Usage(math.nan, 4)))  # type: ignore[arg-type]
        for deployment in (long, odd, odd):
            await router.send("x", model=deployment.model, fallback="none")
        await clock.advance(6.0)
        none, today = await todays(router)
        assert none["requests"] == 0  # under a name that is too long
        assert (today["requests"], today["input_tokens"], today["output_tokens"]) == (2, 1, 11)
        assert "0 reservations" in repr(router.keys.store)


async def test_closing_does_not_wait_for_records_that_hang(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a router that counts nothing open or ask them."""
    monkeypatch.setattr("llm_router.engine.totals._CLOSING", 0.01)

    class Hanging(MemoryRecords):
        async def add(self, *args: Any, **kwargs: Any) -> Mapping[str, int]:
            await asyncio.sleep(60)
            return {}

    router = make_router([pools.one()], records=Hanging())
    await router.send("x")
    async with asyncio.timeout(1):
        await router.aclose()
    async with make_router([pools.one()], totals=False) as router:
        await router.send("x")
        assert (await todays(router)) == [None]


def test_another_loop_goes_on(pools: Pools, tmp_path: Path) -> None:
    """What a loop left is added on the next; two routers' totals come together in the file of both."""
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    provider = FakeProvider()
    one, other = (Router([pools.one(key_id="k", rpm=None)], store=url, provider=provider) for _ in range(2))

    async def send(router: Router, times: int) -> None:
        for _ in range(times):
            assert (await router.send("x")).success

    asyncio.run(send(one, 3))

    async def look() -> int:
        await send(one, 1)
        await send(other, 2)
        await one.aclose()
        [today] = await todays(other)
        await other.aclose()
        return int(today["requests"])

    assert asyncio.run(look()) == 6
    assert (tmp_path / "state.records.sqlite3").exists()


async def test_what_is_counted_while_it_is_added_is_added_next(
    make_router: MakeRouter, pools: Pools, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statuses do not wait for records that are slow, and a router that closes gives their task up."""
    monkeypatch.setattr("llm_router.engine.overview._PATIENCE", 0.01)
    slow = asyncio.Event()

    class Slow(MemoryRecords):
        async def add(self, *args: Any, **kwargs: Any) -> Mapping[str, int]:
            await slow.wait()
            return await super().add(*args, **kwargs)

    records = Slow(clock=clock)
    router = make_router([pools.one(key_id="k", rpm=None)], records=records)
    await router.send("x")
    await clock.advance(5.1)
    await router.send("x")
    [row] = await router.get_all_key_statuses()
    assert (row["today"], row["state"]) == (None, "ready")
    slow.set()
    await clock.advance(5.1)
    [today] = await todays(router)
    assert today["requests"] == 2
    slow.clear()
    await router.send("x")
    await clock.advance(5.1)
    monkeypatch.setattr("llm_router.engine.totals._CLOSING", 0.01)
    await router.aclose()
    assert router._totals is not None
    assert router._totals._task is None


async def test_a_forked_child_forgets_what_its_parent_counted(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """Else both would add it."""
    async with make_router([pools.one()]) as router:
        await router.send("x")
        assert router._totals is not None
        router._totals.forget()
        assert (await todays(router))[0]["requests"] == 0
