"""Random play: every store decides as the naive model says it must."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from llm_router.testing.clock import ManualClock

if TYPE_CHECKING:
    from tests.stores.conftest import Backend
    from tests.stores.store_model import Operation, Player, World, plays, worlds
else:
    from llm_router_tests_store_model import Player, plays, worlds


pytestmark = pytest.mark.slow


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(world=worlds(), operations=plays())
async def test_a_store_decides_as_the_model_does(
    store_backend: Backend, world: World, operations: list[Operation]
) -> None:
    """No window exceeds its limit, nothing that fits is refused, and every reported time is right."""
    clock = ManualClock(world.start)
    async with store_backend.open(clock) as store:
        await Player(store, clock, world).play([*operations, ("look", ())])
