"""What a router does: as log lines, Prometheus metrics, OpenTelemetry spans, and in an observer of your own.

Run it with ``python examples/observability.py``. It uses a fake provider in place of the Gemini API. It needs
``pip install 'llm-quota-router[otel,prometheus]' opentelemetry-sdk``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from prometheus_client import CollectorRegistry, generate_latest

from llm_router import Deployment, Key, Metric, ProviderError, Quota, Router, Secret
from llm_router.observe import (
    AttemptEnded,
    Event,
    LoggingObserver,
    OpenTelemetryObserver,
    PrometheusObserver,
)
from llm_router.testing import FakeProvider

DEPLOYMENTS = [
    Deployment(
        Key(name, Secret("any-text-will-do")), "gemini-3.5-flash-lite", quotas=(Quota(Metric.RPM, 15),)
    )
    for name in ("first-key", "second-key")
]


class TokensByTenant:
    """An observer of your own: a class with one method, which must be quick and must not block."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()

    def observe(self, event: Event) -> None:
        """Add up what each tenant used; all other events are left alone."""
        if isinstance(event, AttemptEnded):
            self.tokens[event.tenant or "-"] += event.usage.total_tokens


async def main() -> None:
    """Send two prompts, the first of which meets a spent quota; show what the observers saw."""
    # A program that runs has all this already, and leaves out the arguments that say where things go.
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
    spans = TracerProvider()
    spans.add_span_processor(
        SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: f"span: {span.name}\n"))
    )
    registry = CollectorRegistry()
    metrics, by_tenant = PrometheusObserver(registry), TokensByTenant()
    tracing = OpenTelemetryObserver(spans, MeterProvider())

    provider = FakeProvider([ProviderError("quota exceeded", kind="quota", code=429, retry_delay=20)])
    observers = (LoggingObserver(), metrics, tracing, by_tenant)
    async with Router(DEPLOYMENTS, provider=provider, observers=observers) as router:
        await router.send("Hello", metadata={"tenant": "acme", "feature": "greeting"})
        await router.send("And again", metadata={"tenant": "other"})
        await metrics.refresh(router.keys)  # before each scrape: what is left of every quota

    print(f"tokens: {dict(by_tenant.tokens)}")
    for line in generate_latest(registry).decode().splitlines():
        if line.startswith(("llm_router_rate_limited_total", "llm_router_quota_remaining")):
            print(line)


if __name__ == "__main__":
    asyncio.run(main())
