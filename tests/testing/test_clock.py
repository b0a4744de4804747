"""The clocks that tests move."""

from __future__ import annotations

from llm_router.testing import ManualClock


async def test_a_jump_moves_the_time_and_no_timer() -> None:
    """A clock that is corrected, in either direction, leaves pending timers the time they had left."""
    clock = ManualClock(1_000.0)
    fired: list[float] = []
    clock.call_later(10.0, lambda: fired.append(clock.time()))
    clock.jump(-500.0)
    assert (clock.time(), fired) == (500.0, [])
    clock.jump(2_000.0)
    assert (clock.time(), fired) == (2_500.0, [])
    await clock.advance(9.9)
    assert fired == []
    await clock.advance(0.2)
    assert fired == [2_510.0]
