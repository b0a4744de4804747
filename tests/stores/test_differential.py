"""The same random play on every store at once: their answers do not differ."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from llm_router.stores import Decision, DeploymentSnapshot
from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend
    from tests.stores.store_model import Operation, Player, World, plays, worlds
else:
    from llm_router_tests_store_model import Player, plays, worlds


pytestmark = pytest.mark.slow


def _assert_same_decision(one: Decision, other: Decision) -> None:
    assert one.deployment is other.deployment
    assert abs(one.headroom - other.headroom) <= 1e-6
    assert abs(one.daily_headroom - other.daily_headroom) <= 1e-6
    assert {probe.scope: probe.strikes for probe in one.probes} == {
        probe.scope: probe.strikes for probe in other.probes
    }
    assert len(one.refusals) == len(other.refusals)
    for mine, theirs in zip(one.refusals, other.refusals, strict=True):
        assert (mine.deployment, mine.reason) == (theirs.deployment, theirs.reason)
        assert _close(mine.retry_at, theirs.retry_at)
        assert _close(mine.wake_at, theirs.wake_at)


def _assert_same_snapshot(one: DeploymentSnapshot, other: DeploymentSnapshot) -> None:
    assert one.deployment is other.deployment
    assert [(quota.metric, quota.limit, quota.used) for quota in one.quotas] == [
        (quota.metric, quota.limit, quota.used) for quota in other.quotas
    ]
    assert [quota.learnt for quota in one.quotas] == [quota.learnt for quota in other.quotas]
    assert all(_close(a.resets_at, b.resets_at) for a, b in zip(one.quotas, other.quotas, strict=True))
    assert (one.cooldown is None) == (other.cooldown is None)
    if one.cooldown is not None and other.cooldown is not None:
        assert (one.cooldown.scope, one.cooldown.reason) == (other.cooldown.scope, other.cooldown.reason)
        assert (one.cooldown.half_open, one.cooldown.strikes) == (
            other.cooldown.half_open,
            other.cooldown.strikes,
        )
        assert _close(one.cooldown.until, other.cooldown.until)


def _close(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= 2e-6


def _assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Decision):
        _assert_same_decision(one, other)
    else:
        for mine, theirs in zip(one, other, strict=True):
            _assert_same_snapshot(mine, theirs)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds(), operations=plays())
async def test_every_store_answers_alike(
    all_backends: list[Backend], world: World, operations: list[Operation]
) -> None:
    """Deployment, headroom, refusals and snapshots agree after each call, to the microsecond."""
    async with AsyncExitStack() as stack:
        players = []
        for backend in all_backends:
            clock = ManualClock(world.start)
            players.append(Player(await stack.enter_async_context(backend.open(clock)), clock, world))
        for operation in [*operations, ("look", ())]:
            for player in players:
                await player.play([operation])
            first = players[0]
            for player in players[1:]:
                assert len(player.answers) == len(first.answers)
                if first.answers:
                    _assert_same(first.answers[-1], player.answers[-1])
