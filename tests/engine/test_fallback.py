"""The fallback order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router import InvalidRequestError, LeastLoaded, UnknownModelError, UnknownWorkloadError
from llm_router.domain.methods import GENERATE
from llm_router.domain.request import Fallback
from llm_router.engine.fallback import FallbackOrders

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.engine.conftest import MakePool


WORKLOADS = ("light", "medium", "heavy")


@pytest.fixture
def orders(pools: Pools, make_pool: MakePool) -> FallbackOrders:
    grid = [
        pools.one("flash", "light", key_id="light-flash"),
        pools.one("pro", "light", key_id="light-pro"),
        pools.one("pro", "medium", key_id="medium-pro"),
        pools.one("pro", "heavy", key_id="heavy-pro"),
        pools.one("exp", "heavy", key_id="heavy-exp"),
    ]
    return FallbackOrders(make_pool(grid), WORKLOADS)


def _order(orders: FallbackOrders, workload: str | None, model: str | None, fallback: Fallback) -> list[str]:
    order = orders[workload, model, fallback, frozenset(), GENERATE]
    return [state.deployment.key.key_id for state in order.draw(LeastLoaded(), 0.0, 8)]


def test_workload_and_model(orders: FallbackOrders) -> None:
    """Same workload and model, then the model on the nearest workload, then anything."""
    order = _order(orders, "heavy", "pro", "any")
    assert order[:3] == ["heavy-pro", "medium-pro", "light-pro"]
    assert order[3:] == ["heavy-exp", "light-flash"]


def test_workload_alone(orders: FallbackOrders) -> None:
    """Same workload, then the nearest others."""
    order = _order(orders, "medium", None, "any")
    assert order[0] == "medium-pro"
    assert len(order) == 5


def test_model_alone(orders: FallbackOrders) -> None:
    """The model on any workload, then anything."""
    order = _order(orders, None, "pro", "any")
    assert set(order[:3]) == {"light-pro", "medium-pro", "heavy-pro"}
    assert set(order[3:]) == {"light-flash", "heavy-exp"}


def test_without_preferences_anything_is_taken(orders: FallbackOrders) -> None:
    """Without a workload and a model every deployment is in one tier."""
    assert len(_order(orders, None, None, "any")) == 5


@pytest.mark.parametrize(
    ("workload", "model", "fallback", "expected"),
    [
        ("heavy", "pro", "none", {"heavy-pro"}),
        ("heavy", "pro", "model", {"heavy-pro", "medium-pro", "light-pro"}),
        ("light", None, "none", {"light-flash", "light-pro"}),
        ("light", None, "model", {"light-flash", "light-pro"}),
        (None, "pro", "none", {"light-pro", "medium-pro", "heavy-pro"}),
        (None, "pro", "model", {"light-pro", "medium-pro", "heavy-pro"}),
        (None, None, "none", {"light-flash", "light-pro", "medium-pro", "heavy-pro", "heavy-exp"}),
    ],
)
def test_fallback_ends_where_requested(
    orders: FallbackOrders, workload: str | None, model: str | None, fallback: Fallback, expected: set[str]
) -> None:
    """``none`` and ``model`` end the search before other deployments."""
    assert set(_order(orders, workload, model, fallback)) == expected


def test_no_deployment_is_in_two_tiers(orders: FallbackOrders) -> None:
    """A shortlist never names a deployment twice."""
    order = _order(orders, "heavy", "pro", "any")
    assert len(order) == len(set(order))


def test_unknown_names_are_errors_that_list_the_known(orders: FallbackOrders) -> None:
    """The error for a misspelt name lists the valid ones."""
    with pytest.raises(UnknownWorkloadError, match="'light', 'medium', 'heavy'"):
        orders["hefty", None, "any", frozenset(), GENERATE]
    with pytest.raises(UnknownModelError, match="'exp', 'flash', 'pro'"):
        orders[None, "gpt", "any", frozenset(), GENERATE]
    with pytest.raises(InvalidRequestError, match="any, model, none"):
        orders[None, None, "sometimes", frozenset(), GENERATE]  # type: ignore[index]


def test_an_impossible_pair_without_fallback_is_an_error(orders: FallbackOrders) -> None:
    """A model that no deployment has for the workload cannot be requested with fallback ``none``."""
    with pytest.raises(InvalidRequestError, match="fallback='model'"):
        orders["light", "exp", "none", frozenset(), GENERATE]
