"""Fixtures that the tests of the engine share: pools of deployments and their fallback orders."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from llm_router import Deployment
from llm_router.domain.request import Fallback
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.index import FallbackOrder
from llm_router.engine.pool import Pool
from llm_router.engine.upstream import Upstream
from llm_router.stores.base import Sharded
from llm_router.testing import FakeProvider

WORKLOADS = ("light", "medium", "heavy")

MakePool = Callable[..., Pool]
MakeOrder = Callable[..., FallbackOrder]


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
        return FallbackOrders(pool, WORKLOADS)[workload, model, fallback, frozenset()]

    return make
