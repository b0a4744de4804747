"""The one place where the names of Redis keys are made."""

from __future__ import annotations

from urllib.parse import quote

from llm_router.errors import ConfigError

__all__ = ["KeyNames"]


class KeyNames:
    """Names the keys of one namespace.

    All of them carry the namespace as their hash tag, so that a Redis Cluster keeps them on one node and a
    script can use them together.

    Args:
        namespace: What keeps several routers on one server apart.

    Raises:
        ConfigError: The namespace is empty.
    """

    def __init__(self, namespace: str) -> None:
        if not namespace:
            raise ConfigError("the namespace of a Redis store must not be empty")
        tag = f"{{{quote(namespace, safe='')}}}"
        self.scopes = f"{tag}:scope:"
        """What the key of a scope is called before its name."""
        self.reservations = f"{tag}:reservations"
        """The hash of all reservations."""
        self.sweep = f"{tag}:sweep"
        """The state of sweeping expired reservations."""
        self.others = f"{tag}:others"
        """When the last cooldown of a key or a provider ends, or later."""
