"""One request on its way: what was asked for, and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import attrs

from llm_router.domain.request import Request, Urgency
from llm_router.domain.response import Attempt, Response
from llm_router.engine.estimates import TEXT
from llm_router.engine.index import DeploymentState, FallbackOrder, Group
from llm_router.engine.upstream import Upstream
from llm_router.errors import ProviderError
from llm_router.providers.base import RelayRequest

__all__ = ["SendState"]

_NONE: Mapping[Group, int] = {}


@attrs.define(eq=False)
class SendState:
    """One request on its way; made once per send, hence not frozen, which costs more.

    Attributes:
        request: What to send.
        order: Through which deployments.
        tokens: Estimated input tokens, uncorrected, by provider.
        timeout: Seconds for all attempts and backoffs together, not counting the wait for capacity.
        max_wait: Most seconds to wait for capacity, over all attempts.
        ttl: Seconds after which a reservation expires if this process dies.
        started: When it began, on the monotonic clock.
        task: The task that waits for the response, if it is one and the same to the end.
        model: The model asked for, or None.
        metadata: What the caller gave to be found again in attempts and events.
        relayed: The exchange, if it is one that is relayed; ``request`` then only describes it.
        requests: How many requests of a quota each attempt takes; 0 for what the provider does not count.
        projects: The only projects whose deployments can serve it; empty for all.
        urgency: Whether it waits among the interactive requests or behind them.
        tenant: The tenant that it is made for; None for the one of the metadata, if there is one.
        request_id: Names the request in events; empty where nothing observes it.
        kind: The kind of its content, by which token estimates are corrected.
        waited: Seconds spent waiting for capacity.
        attempts: The attempts that were made.
        tried: The deployments they were made on.
        last: The deployment of the last one.
        error: The last failure of a provider.
        unfit: The groups whose model cannot serve the request.
        overloaded: The groups of which two deployments were overloaded: asked again only as a last resort.
        features: The features of the request that have quotas of their own, as far as they matter now.
        refused: How many attempts were refused for want of quota while the request could have waited for it.
        backoff: Seconds to wait before the next attempt.
        response: What the caller gets; once there is one, no further attempt is made.
    """

    request: Request
    order: FallbackOrder
    tokens: dict[Upstream, int]
    timeout: float
    max_wait: float
    ttl: float
    started: float
    task: asyncio.Task[Any] | None = None
    model: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict)
    relayed: RelayRequest | None = None
    requests: int = 1
    projects: frozenset[str] = frozenset()
    urgency: Urgency = "interactive"
    tenant: str | None = None
    request_id: str = ""
    kind: int = TEXT
    waited: float = 0.0
    attempts: list[Attempt] = attrs.field(factory=list)
    tried: set[DeploymentState] = attrs.field(factory=set)
    last: DeploymentState | None = None
    error: ProviderError | None = None
    unfit: frozenset[Group] = frozenset()
    overloaded: Mapping[Group, int] = _NONE
    features: frozenset[str] = frozenset()
    refused: int = 0
    backoff: float = 0.0
    response: Response | None = None
