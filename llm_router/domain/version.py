"""The version of this library, from the metadata of its installation."""

from __future__ import annotations

import importlib.metadata

__all__ = ["UNKNOWN_VERSION", "installed_version"]

UNKNOWN_VERSION = "0+unknown"
"""The version of a checkout that was never installed."""

_DISTRIBUTIONS = ("llm-quota-router", "llm-router")
"""The name of the distribution, and the one it had before."""


def installed_version() -> str:
    """Return the installed version, or :data:`UNKNOWN_VERSION`."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return UNKNOWN_VERSION
