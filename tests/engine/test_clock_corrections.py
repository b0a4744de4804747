"""Clocks that are corrected in the middle of a send: waits, timeouts and latencies do not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from llm_router import Deployment, MemoryStore, Metric, ProviderError, Quota, Router, SystemClock
from llm_router.domain.clock import Clock, Timer, monotonic, sleep
from llm_router.domain.deployment import Key
from llm_router.domain.secret import Secret
from llm_router.engine.breaker import CircuitBreaker
from llm_router.engine.gate import DispatchGate
from llm_router.engine.timing import Deadlines
from llm_router.testing import FakeProvider, ManualClock

MakeRouter = Callable[..., Router]

HOUR = 3_600.0
jumps = pytest.mark.parametrize("jump", [-HOUR, HOUR, -24 * HOUR, 24 * HOUR])


def deployment(key_id: str, rpm: int = 100, window: float = 60.0) -> Deployment:
    """Make a deployment."""
    key = Key(key_id, Secret(f"secret-of-{key_id}"))
    return Deployment(key, "model", "light", quotas=(Quota(Metric.RPM, rpm, window=window),))


@jumps
async def test_a_call_that_hangs_ends_at_its_timeout(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, jump: float
) -> None:
    """It ends no earlier and no later, and its latency is what it took."""
    provider.script(asyncio.Event())
    async with make_router([deployment("k")]) as router:
        task = asyncio.create_task(router.send("x", timeout=10))
        await clock.advance(4)
        clock.jump(jump)
        await clock.advance(5.9)
        assert not task.done()
        await clock.advance(0.2)
        response = task.result()
    assert response.latency == pytest.approx(10)
    assert response.attempt_log[0].latency == pytest.approx(10)


@jumps
async def test_retries_end_at_the_timeout(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, jump: float
) -> None:
    """A send that keeps trying has all of its time for that, and no more."""
    provider.script(ProviderError("overloaded", kind="server", code=503), times=10_000)
    pool = [deployment(f"k{number}", rpm=10_000) for number in range(3)]
    async with make_router(pool, max_retries=9_999, base_backoff=0.1) as router:
        task = asyncio.create_task(router.send("x", timeout=300))
        await clock.advance(2)
        clock.jump(jump)
        await clock.advance(120)
        assert not task.done()
        await clock.advance(200)
        assert 120 < task.result().latency <= 300


@jumps
async def test_a_wait_ends_at_its_bound(make_router: MakeRouter, clock: ManualClock, jump: float) -> None:
    """Where quota comes back in time by the clock as it is set, and then does not, the caller is answered."""
    async with make_router([deployment("k", rpm=1)]) as router:
        assert (await router.send("x")).success
        tasks = [asyncio.create_task(router.send("x", max_wait=70)) for _ in range(2)]
        await clock.advance(30)
        clock.jump(jump)
        await clock.advance(41)
        assert all(task.done() for task in tasks)
        assert all(task.result().waited <= 70.5 for task in tasks)
        assert all(task.result().latency <= 70.5 for task in tasks)


@jumps
async def test_a_wait_that_began_before_a_correction_is_granted(
    make_router: MakeRouter, clock: ManualClock, jump: float
) -> None:
    """Quota that comes back within the wait is used, although the clock was corrected meanwhile."""
    async with make_router([deployment("k", rpm=1, window=3.0)]) as router:
        assert (await router.send("x")).success
        task = asyncio.create_task(router.send("x", max_wait=8))
        await clock.advance(0.3)
        clock.jump(jump)
        await clock.advance(7.5)
        assert task.result().success
        assert task.result().waited < 8


@jumps
async def test_a_stream_measures_its_time_steadily(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock, jump: float
) -> None:
    """A correction between two pieces does not cut the stream short, nor lengthen its latency."""
    provider.script("one two")
    async with make_router([deployment("k")]) as router, router.stream("x", timeout=10) as stream:
        pieces = []
        async for piece in stream:
            pieces.append(piece.text)
            clock.jump(jump)
            clock.shift(1)
        assert stream.response is not None
    assert stream.response.success
    assert stream.response.latency == pytest.approx(len(pieces))


async def test_a_provider_that_is_avoided_is_not_avoided_for_longer(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """A failure of the path puts a deployment aside for a moment, even if the clock is set back meanwhile."""
    provider.script(ProviderError("unreachable", kind="network"))
    async with make_router([deployment("k")], max_retries=0, base_backoff=4) as router:
        assert not (await router.send("x")).success
        clock.jump(-HOUR)
        response = await router.send("x")
        assert response.retry_after is not None
        assert response.retry_after <= 4
        await clock.advance(4.1)
        assert (await router.send("x")).success


async def test_a_correction_joins_no_two_refusals(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """A key that is refused again after the clock was set back is judged anew."""
    async with make_router([deployment("k"), deployment("l")], max_retries=0) as router:
        provider.script(ProviderError("not found", kind="model", code=404), times=2)
        assert not (await router.send("x")).success
        clock.jump(-HOUR)
        await router.keys.lift("k")
        await router.keys.lift("l")
        clock.shift(1)
        assert not (await router.send("x")).success
        asleep = [status["in_cooldown"] for status in await router.get_all_key_statuses()]
    assert any(asleep)


async def test_old_failures_do_not_open_a_breaker_after_a_correction() -> None:
    """Failures from before the clock was set back lie an unknown time ago."""
    breaker = CircuitBreaker()
    breaker.record_failure("a", 2 * HOUR)
    breaker.record_failure("b", 2 * HOUR)
    breaker.record_failure("c", HOUR)
    assert breaker.open_until < HOUR


@jumps
async def test_the_gate_goes_by_steady_time(clock: ManualClock, jump: float) -> None:
    """What waits for a permit is let through after the grace, whatever the clock is set to."""
    gate = DispatchGate(clock, 0.3)
    await gate.enter()
    task = asyncio.create_task(gate.enter())
    await clock.advance(0.1)
    clock.jump(jump)
    await clock.advance(0.1)
    assert not task.done()
    await clock.advance(0.2)
    assert task.done()


class Plain:
    """A clock of a user, with nothing but what the protocol asks for."""

    def __init__(self) -> None:
        self._inner = ManualClock()

    def time(self) -> float:
        return self._inner.time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return self._inner.call_later(delay, callback)

    async def advance(self, seconds: float) -> None:
        await self._inner.advance(seconds)


async def test_a_clock_without_steady_time_works(provider: FakeProvider) -> None:
    """Waits and timeouts of a clock that has nothing but the protocol go by its time."""
    clock = Plain()
    router = Router([deployment("k", rpm=1, window=3.0)], provider=provider, clock=clock)
    async with router:
        assert (await router.send("x")).success
        waiting = asyncio.create_task(router.send("x", max_wait=10))
        await clock.advance(5)
        assert waiting.result().success
        assert 2.9 < waiting.result().waited < 4
        provider.script(asyncio.Event())
        hanging = asyncio.create_task(router.send("x", max_wait=10, timeout=2))
        await clock.advance(6)
        assert not hanging.result().success


class _OwnTime(ManualClock):
    def time(self) -> float:
        return super().time() + 5


class _OwnSpeed(SystemClock):
    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        return super().call_later(delay / 2, callback)


class _Steady(_OwnTime):
    def monotonic(self) -> float:
        return 7.0


@pytest.mark.parametrize("clock", [Plain(), _OwnTime(), _OwnSpeed()], ids=["plain", "time", "speed"])
def test_steady_time_is_not_inherited_past_a_time_of_ones_own(clock: Clock) -> None:
    """A subclass with a time or a speed of its own does not get that of its parent beside it."""
    assert monotonic(clock) == clock.time


def test_steady_time_is_what_the_clock_says() -> None:
    """The machine's clock reads the monotonic one; another is asked for its own."""
    assert monotonic(SystemClock()) is time.monotonic
    assert monotonic(_Steady())() == 7.0
    manual = ManualClock(100.0)
    steady = monotonic(manual)
    first = steady()
    manual.jump(-HOUR)
    manual.shift(2)
    manual.jump(3 * HOUR)
    assert steady() - first == pytest.approx(2)


async def test_the_machine_s_clock_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the machine's clock ends on time although that is set back by an hour."""
    clock = SystemClock()
    monkeypatch.setattr(SystemClock, "time", staticmethod(lambda: time.time() - HOUR))
    began = time.monotonic()
    with Deadlines(clock).limit(0.02) as limit:
        await sleep(clock, 30)
    assert limit.expired
    assert time.monotonic() - began < 10


async def test_reserving_counts_on_wall_time(make_router: MakeRouter, clock: ManualClock) -> None:
    """Quotas stay on the time of day: an hour later by the clock, a minute's quota has come back."""
    async with make_router([deployment("k", rpm=1)], store=MemoryStore(clock=clock)) as router:
        assert (await router.send("x")).success
        clock.jump(HOUR)
        assert (await router.send("x", max_wait=0)).success


async def test_what_is_full_is_asked_again_after_a_correction(
    make_router: MakeRouter, provider: FakeProvider, clock: ManualClock
) -> None:
    """A deployment that was full is not left out for as long as the clock was set back."""
    other = Deployment(Key("b", Secret("b")), "model", "heavy", quotas=(Quota(Metric.RPM, 10),))
    async with make_router([deployment("a", rpm=10), other], store=MemoryStore(clock=clock)) as router:
        for _ in range(11):
            await router.send("x", workload="light")
        assert [call.key_id for call in provider.calls] == ["a"] * 10 + ["b"]
        clock.jump(-HOUR)
        for _ in range(3):
            await clock.advance(61.0)
            provider.calls.clear()
            for _ in range(25):
                await router.send("x")
        assert sorted(call.key_id for call in provider.calls) == ["a"] * 10 + ["b"] * 10
