"""Fixtures that the tests of the engine share: deployments, pools, orders, selectors and requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest

from llm_router import Deployment, LeastLoaded, MemoryStore, RateLimitStore, Request
from llm_router.domain.methods import GENERATE
from llm_router.domain.quota import GUARD
from llm_router.domain.request import Fallback
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.gate import DispatchGate
from llm_router.engine.index import FallbackOrder
from llm_router.engine.pool import Pool
from llm_router.engine.reserving import Selector
from llm_router.engine.state import SendState
from llm_router.engine.timing import Deadlines
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Sharded
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

WORKLOADS = ("light", "medium", "heavy")

MakeDeployment = Callable[..., Deployment]
MakeDeployments = Callable[..., list[Deployment]]
MakePool = Callable[..., Pool]
MakeOrder = Callable[..., FallbackOrder]
MakeSelector = Callable[..., Selector]
MakeSend = Callable[..., SendState]


@pytest.fixture
def make_deployment(pools: Pools) -> MakeDeployment:
    """Make a deployment with a key of its own."""
    return pools.one


@pytest.fixture
def make_deployments(pools: Pools) -> MakeDeployments:
    """Make several deployments, each with a key of its own."""
    return pools.many


@pytest.fixture
def make_pool() -> MakePool:
    """Make a pool of deployments, all of them ready."""

    def make(deployments: Iterable[Deployment], shards: Sharded | None = None) -> Pool:
        deployments = list(deployments)
        names = {deployment.key.provider for deployment in deployments}
        return Pool(deployments, {name: Upstream(name, FakeProvider()) for name in names}, shards)

    return make


@pytest.fixture
def make_order() -> MakeOrder:
    """Make the fallback order for a workload and a model."""

    def make(
        pool: Pool, workload: str | None = None, model: str | None = None, fallback: Fallback = "any"
    ) -> FallbackOrder:
        return FallbackOrders(pool, WORKLOADS)[workload, model, fallback, frozenset(), GENERATE]

    return make


@pytest.fixture
def make_selector(clock: ManualClock) -> MakeSelector:
    """Make a selector on the manual clock, with a store in memory unless another is given."""

    def make(pool: Pool, store: RateLimitStore | None = None, gate: DispatchGate | None = None) -> Selector:
        return Selector(
            store or MemoryStore(clock=clock),
            pool,
            LeastLoaded(),
            clock,
            Deadlines(clock),
            gate or DispatchGate(clock, GUARD),
        )

    return make


@pytest.fixture
def make_send(clock: ManualClock) -> MakeSend:
    """Make a request on its way, with the same estimate of tokens for every provider of its order."""

    def make(order: FallbackOrder, tokens: int = 1, ttl: float = 120.0) -> SendState:
        estimates = dict.fromkeys(order.upstreams, tokens)
        return SendState(Request(contents="x"), order, estimates, 60.0, 0.0, ttl, clock.time())

    return make
