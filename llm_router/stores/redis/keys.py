"""The names of Redis keys, which are made only here."""

from __future__ import annotations

from binascii import crc_hqx
from itertools import count
from urllib.parse import quote

from llm_router.errors import ConfigError

__all__ = ["KeyNames", "key_names"]


_VERSION = ":3"
"""The version of the formats that an earlier release cannot read."""

_SLOTS = 16_384
"""Slots of a cluster: the CRC-16 of its hash tag determines the slot of a key."""


class KeyNames:
    """The names of the keys of one namespace, or of one of its shards.

    All of them carry the same hash tag, so that a Redis Cluster keeps them on one node and a script can use
    them together. The tag is the namespace, followed by the shard if there are several.

    Args:
        namespace: Separates several routers on one server.
        shard: The number of the shard.
        shards: How many there are.

    Raises:
        ConfigError: The namespace is empty.
    """

    def __init__(self, namespace: str, shard: int = 0, shards: int = 1) -> None:
        if not namespace:
            raise ConfigError("the namespace of a Redis store must not be empty")
        name = quote(namespace, safe="")
        tag = f"{{{name if shards == 1 else _tag(name, shard, shards)}}}"
        self.scopes = f"{tag}:scope:"
        """The prefix of the key of a scope; its name and ``version`` follow."""
        self.version = _VERSION
        """What follows the name of a scope; in format 2 nothing did, and such a key is read if need be."""
        self.full = f"{tag}:full{_VERSION}:"
        """The prefix of the key of what is known of a full model; the name of its scope follows."""
        self.reservations = f"{tag}:reservations{_VERSION}"
        """The hash of all reservations."""
        self.reservations_before = f"{tag}:reservations"
        """The same of earlier releases: what they reserved can still be settled."""
        self.sweep = f"{tag}:sweep{_VERSION}"
        """The state of sweeping expired reservations."""
        self.others = f"{tag}:others{_VERSION}"
        """Which keys, projects and providers cool down, and how often a cooldown was lifted."""
        self.epoch = f"{tag}:epoch{_VERSION}"
        """When the shard began to count, and when it last lost something."""
        self.charges = f"{tag}:charge{_VERSION}:"
        """The prefix of the key of a process's last charge; its quoted source and the scope's name follow."""
        self.processes = f"{tag}:processes{_VERSION}"
        """The sorted set of the processes, by the time at which they were last alive."""
        self.others_before = f"{tag}:others"
        """The same in format 2: when the last cooldown of a key or provider ends, or later."""


def key_names(namespace: str, shards: int) -> list[KeyNames]:
    """Return the names of each shard of a namespace.

    Raises:
        ConfigError: The namespace is empty.
    """
    return [KeyNames(namespace, shard, shards) for shard in range(shards)]


def _tag(name: str, shard: int, shards: int) -> str:
    """Return the first of ``name:shard.0``, ``name:shard.1``, … in the middle of its part of the slots.

    The nodes of a cluster have equal ranges of the slots unless some were moved. So n shards lie on n nodes,
    while chance would put two of three on one node.
    """
    for attempt in count():
        tag = f"{name}:{shard}.{attempt}"
        place = crc_hqx(tag.encode(), 0) % _SLOTS * shards / _SLOTS - shard
        if 0.25 <= place < 0.75:  # noqa: PLR2004 - the middle half
            return tag
    raise AssertionError("count() has no end")
