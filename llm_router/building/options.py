"""The options of a router, named and typed in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from llm_router.caching.cache import Cache
from llm_router.conversations.base import HistoryStore
from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment
from llm_router.domain.pacing import Pacing
from llm_router.observe.base import RouterObserver
from llm_router.records.base import RecordStore
from llm_router.stores.failover import LocalShare, StoreFailurePolicy
from llm_router.strategies.base import SelectionStrategy

__all__ = ["RouterOptions"]


class RouterOptions(TypedDict, total=False):
    """What :meth:`Router.from_config` passes on to :class:`Router`; every option may be left out."""

    strategy: SelectionStrategy | None
    clock: Clock | None
    workloads: Sequence[str]
    inactive: Iterable[Deployment]
    max_retries: int
    base_backoff: float
    max_wait: float
    on_store_failure: StoreFailurePolicy
    local_share: LocalShare
    max_requests_per_second: float | None
    safety_settings: Mapping[str, str] | None
    base_url: str | None
    histories: HistoryStore | str | None
    records: RecordStore | str | None
    totals: bool
    cache: Cache | str | None
    history_tokens: Mapping[str, int] | None
    observers: Iterable[RouterObserver]
    tenant_weights: Mapping[str, float] | None
    rpd_pacing: Pacing | None
