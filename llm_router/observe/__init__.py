"""Watch a router: the port for observers, its events, and sinks for logs, OpenTelemetry and Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_router.observe.base import (
    AttemptBegan,
    AttemptEnded,
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
    Quarantined,
    Refused,
    Reloaded,
    RequestEvent,
    RouterObserver,
    ScopeEvent,
    SelectiveObserver,
    SendBegan,
    SendEnded,
    Settled,
    StoreBack,
    StoreLost,
    Waited,
    Waiting,
)
from llm_router.observe.logging import LoggingObserver

if TYPE_CHECKING:
    from llm_router.observe.otel import OpenTelemetryObserver
    from llm_router.observe.prometheus import PrometheusObserver

__all__ = [
    "AttemptBegan",
    "AttemptEnded",
    "CooledDown",
    "Disabled",
    "Event",
    "Lifted",
    "LimitLearnt",
    "LoggingObserver",
    "OpenTelemetryObserver",
    "PrometheusObserver",
    "Quarantined",
    "Refused",
    "Reloaded",
    "RequestEvent",
    "RouterObserver",
    "ScopeEvent",
    "SelectiveObserver",
    "SendBegan",
    "SendEnded",
    "Settled",
    "StoreBack",
    "StoreLost",
    "Waited",
    "Waiting",
]

_LAZY = {
    "OpenTelemetryObserver": ("llm_router.observe.otel", "otel"),
    "PrometheusObserver": ("llm_router.observe.prometheus", "prometheus"),
}
"""The names that need an extra: where they are, and the extra."""


if not TYPE_CHECKING:  # a type checker would take every misspelt name of this module for one that is there

    def __getattr__(name: str) -> Any:
        """Import names that need an extra on first use."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - only on this path

        module, extra = _LAZY[name]
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{name} needs {error.name!r}: pip install 'llm-quota-router[{extra}]'", name=error.name
            ) from error
