"""Virtual time passes at once, in order, and stands still for what is real."""

from __future__ import annotations

import asyncio
import time

import pytest

from llm_router.testing import virtual
from llm_router.testing.virtual import VirtualClock, VirtualLoop, run


def test_a_virtual_second_takes_no_time() -> None:
    """A year passes at once, and timers fire in their order and never early."""
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float, clock: VirtualClock) -> None:
        until = clock.time() + seconds
        await asyncio.sleep(seconds)
        seen.append((name, clock.time() - until))

    async def main(loop: VirtualLoop) -> None:
        clock = VirtualClock(loop)
        year = 365 * 86_400.0
        await asyncio.gather(sleeper("year", year, clock), sleeper("day", 86_400.0, clock))

    began = time.monotonic()
    run(main)
    assert time.monotonic() - began < 30.0
    assert [name for name, _ in seen] == ["day", "year"]
    assert all(0 <= late < 0.01 for _, late in seen)


def test_time_stands_still_while_something_outside_is_awaited() -> None:
    """A call to a thread takes no virtual time, even while a timer is pending."""

    async def main(loop: VirtualLoop) -> float:
        async def work() -> None:
            await asyncio.to_thread(time.sleep, 0.02)

        timer = loop.call_later(0.001, lambda: None)
        began = loop.time()
        await loop.awaited(work)()
        timer.cancel()
        return loop.time() - began

    assert run(main) == 0.0


def test_a_virtual_loop_that_waits_for_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises instead of hanging."""
    monkeypatch.setattr(virtual, "_PATIENCE", 0.01)

    async def main(loop: VirtualLoop) -> None:
        await loop.create_future()

    with pytest.raises(RuntimeError, match="nothing left to wait for"):
        run(main)
