"""Spend many LLM API keys well: quota-exact, asynchronous routing of prompts over keys and models."""

from typing import TYPE_CHECKING

from llm_router.building.options import RouterOptions
from llm_router.caching import Cache, CacheSavings
from llm_router.conversations import Conversation, HistoryStore, MemoryHistory, StoredHistory
from llm_router.default_router import get_key_manager, get_request_router
from llm_router.domain.answers import FunctionCall, Step
from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.exchange import Exchange, Head
from llm_router.domain.explanation import (
    Exclusion,
    ExplainedCandidate,
    ExplainedQuota,
    ExplainedTier,
    Explanation,
)
from llm_router.domain.options import QueryOptions, RelayOptions, SendOptions
from llm_router.domain.pacing import Pacing
from llm_router.domain.queries import Embeddings, ModelInfo, ModelList
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.reload import ReloadReport
from llm_router.domain.request import Request
from llm_router.domain.response import Attempt, Chunk, PassedOver, Response, Usage
from llm_router.domain.secret import Secret
from llm_router.domain.status import (
    DayTotals,
    FactStatus,
    FailureStatus,
    Health,
    KeyStatus,
    LimitStatus,
    LineStatus,
)
from llm_router.engine.keys import KeyManager
from llm_router.engine.relaying import Relay
from llm_router.engine.streaming import Stream
from llm_router.errors import (
    BlockedError,
    ConfigError,
    DeadlineExceededError,
    EmbeddingError,
    EmptyAnswerError,
    ExtensionError,
    HistoryConflictError,
    HistoryError,
    InvalidRequestError,
    LLMRouterError,
    ProviderError,
    QuotaExhaustedError,
    RefusedCandidate,
    RouterClosedError,
    RouterLoopError,
    SendError,
    StoreCorruptError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnknownKeyError,
    UnknownModelError,
    UnknownPathError,
    UnknownWorkloadError,
)
from llm_router.observe.base import RouterObserver
from llm_router.providers.base import (
    DispatchingProvider,
    FailureKind,
    FaultScope,
    MeteredProvider,
    PreparedProvider,
    Provider,
    QueriedProvider,
    Queries,
    RelayingProvider,
    RelayRequest,
    Reply,
    StreamingProvider,
)
from llm_router.router import Router
from llm_router.stores.base import RateLimitStore
from llm_router.stores.memory import MemoryStore
from llm_router.stores.urls import open_store
from llm_router.strategies import Candidate, LeastLoaded, RoundRobin, SelectionStrategy, Weighted

__all__ = [
    "Attempt",
    "BlockedError",
    "Cache",
    "CacheSavings",
    "Candidate",
    "Chunk",
    "Clock",
    "ConfigError",
    "Conversation",
    "Cooldown",
    "DayTotals",
    "DeadlineExceededError",
    "Demand",
    "Deployment",
    "DispatchingProvider",
    "EmbeddingError",
    "Embeddings",
    "EmptyAnswerError",
    "Exchange",
    "Exclusion",
    "ExplainedCandidate",
    "ExplainedQuota",
    "ExplainedTier",
    "Explanation",
    "ExtensionError",
    "FactStatus",
    "FailureKind",
    "FailureStatus",
    "FaultScope",
    "FunctionCall",
    "Head",
    "Health",
    "HistoryConflictError",
    "HistoryError",
    "HistoryStore",
    "InvalidRequestError",
    "Key",
    "KeyManager",
    "KeyStatus",
    "LLMRouterError",
    "LeastLoaded",
    "LimitStatus",
    "LineStatus",
    "MemoryHistory",
    "MemoryStore",
    "MeteredProvider",
    "Metric",
    "ModelInfo",
    "ModelList",
    "Pacing",
    "PassedOver",
    "PreparedProvider",
    "Provider",
    "ProviderError",
    "QueriedProvider",
    "Queries",
    "QueryOptions",
    "Quota",
    "QuotaExhaustedError",
    "RateLimitStore",
    "Refill",
    "RefusedCandidate",
    "Relay",
    "RelayOptions",
    "RelayRequest",
    "RelayingProvider",
    "ReloadReport",
    "Reply",
    "Request",
    "Response",
    "RoundRobin",
    "Router",
    "RouterClosedError",
    "RouterLoopError",
    "RouterObserver",
    "RouterOptions",
    "Secret",
    "SelectionStrategy",
    "SendError",
    "SendOptions",
    "Step",
    "StoreCorruptError",
    "StoreError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "StoredHistory",
    "Stream",
    "StreamingProvider",
    "SystemClock",
    "UnknownKeyError",
    "UnknownModelError",
    "UnknownPathError",
    "UnknownWorkloadError",
    "Usage",
    "Weighted",
    "get_key_manager",
    "get_request_router",
    "open_store",
]

__version__: str

if not TYPE_CHECKING:  # a type checker would take every misspelt name of this module for a string

    def __getattr__(name: str) -> str:
        """Look up ``__version__`` when it is first read: importing the library stays light."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from llm_router.domain.version import installed_version  # noqa: PLC0415

        globals()[name] = version = installed_version()
        return version
