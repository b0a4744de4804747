"""Tools to test programs that use the router: clocks, a fake provider, an emulator, a store contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_router.testing.clock import ManualClock, ScaledClock
from llm_router.testing.provider import Call, FakeProvider

if TYPE_CHECKING:
    from llm_router.emulator import GeminiEmulator
    from llm_router.testing.store_contract import StoreContract

__all__ = ["Call", "FakeProvider", "GeminiEmulator", "ManualClock", "ScaledClock", "StoreContract"]

_LAZY = {
    "GeminiEmulator": "llm_router.emulator",
    "StoreContract": "llm_router.testing.store_contract",
}


def __getattr__(name: str) -> Any:
    """Import names that need an extra on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - only on this path

    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs {error.name!r}: install llm-quota-router[emulator] (or [test])", name=error.name
        ) from error
