"""The metrics of the gateway at ``/metrics``, in the formats of Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llm_router.domain.exchange import Head
from llm_router.errors import StoreError
from llm_router.gateway.answers import RefusedError
from llm_router.gemini_http.api_errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_router.engine.keys import KeyManager
    from llm_router.observe.base import RouterObserver
    from llm_router.observe.prometheus import PrometheusObserver

__all__ = ["Metrics"]

_FRESH = 1.0
"""Seconds for which the store is not asked again, however often the metrics are read."""

_MISSING = ApiError(
    int(HTTPStatus.NOT_IMPLEMENTED),
    "UNIMPLEMENTED",
    "This gateway counts nothing for Prometheus: pip install 'llm-quota-router[prometheus]', and restart it.",
)


class Metrics:
    """Counts for Prometheus what a gateway's router does, and says it when asked.

    Each process of a gateway counts for itself: one of several has its name in the label ``worker`` of all
    that it says, since Prometheus reaches now the one and now the other.

    Args:
        worker: The name of this process among several; None if it is the only one.

    Attributes:
        observers: What the router must be given; nothing where prometheus-client is not installed. Then
            to read the metrics is refused.
    """

    def __init__(self, worker: str | None = None) -> None:
        self.observers: tuple[RouterObserver, ...] = ()
        self._observer: PrometheusObserver | None = None
        self._look_again = 0.0
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415 - an extra

            from llm_router.observe.prometheus import PrometheusObserver  # noqa: PLC0415 - likewise
        except ModuleNotFoundError:
            return
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._source: Any = registry if worker is None else _Labelled(registry, worker)
        self._observer = PrometheusObserver(registry)
        self.observers = (self._observer,)

    async def read(self, keys: KeyManager, accepted: str) -> tuple[Head, bytes]:
        """Return the answer that has all metrics now.

        Args:
            keys: Where the quotas and cooldowns are read from; while the store fails, they are as they were.
            accepted: The formats that the reader takes, as the header Accept names them.

        Raises:
            RefusedError: prometheus-client is not installed.
        """
        if self._observer is None:
            raise RefusedError(_MISSING)
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - an extra

        if (now := time.monotonic()) >= self._look_again:
            self._look_again = now + _FRESH
            with contextlib.suppress(StoreError):
                await self._observer.refresh(keys)
        encode, kind = choose_encoder(accepted)
        # Thousands of series take long enough to hold up calls.
        body = await asyncio.to_thread(encode, self._source)
        return Head(int(HTTPStatus.OK), (("content-type", kind), ("cache-control", "no-store"))), body


class _Labelled:
    """The metrics of a registry, each with the name of the process."""

    def __init__(self, registry: Any, worker: str) -> None:
        self._registry = registry
        self._worker = worker

    def collect(self) -> Iterator[Any]:
        """Return the metrics."""
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={"worker": self._worker, **sample.labels}) for sample in family.samples
            ]
            yield family
