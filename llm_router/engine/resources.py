"""Which project stored things belong to: files, cached contents, interactions, uploads that have begun."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

import attrs

from llm_router.domain.clock import Clock
from llm_router.errors import InvalidRequestError, StoreError

__all__ = ["KeptRecord", "MemoryOwners", "OwnerRecords", "Resources"]

_log = logging.getLogger("llm_router")

_MOST = 100_000
"""Most names that one process remembers by itself."""

_LIFE = 60 * 86_400.0
"""Seconds for which a name is remembered: longer than the provider keeps all but tuned models."""


class KeptRecord(Protocol):
    """A value that was kept."""

    @property
    def value(self) -> bytes:
        """The value."""
        ...


class OwnerRecords(Protocol):
    """Keeps a value by name; may forget it."""

    async def get(self, key: str, /) -> KeptRecord | None:
        """Return what is kept under a name, or None."""
        ...

    async def put(self, key: str, value: bytes, /) -> object:
        """Keep a value under a name."""
        ...

    async def delete(self, key: str, /) -> None:
        """Forget a name."""
        ...

    async def aclose(self) -> None:
        """Close connections."""
        ...


@attrs.frozen
class _Kept:
    value: bytes
    until: float


class MemoryOwners:
    """Keeps names in this process, those used last.

    Args:
        clock: Where time comes from.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def get(self, key: str) -> KeptRecord | None:
        """Return what is kept under a name, or None."""
        kept = self._kept.get(key)
        if kept is None or kept.until < self._clock.time():
            return None
        self._kept.move_to_end(key)
        return kept

    async def put(self, key: str, value: bytes) -> None:
        """Keep a value under a name."""
        self._kept[key] = _Kept(value, self._clock.time() + _LIFE)
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    async def delete(self, key: str) -> None:
        """Forget a name."""
        self._kept.pop(key, None)

    async def aclose(self) -> None:
        """Do nothing."""


class Resources:
    """Remembers to which project things belong that the provider made for one of its keys.

    Args:
        records: Where that is kept. One that fails is as one that has forgotten.
    """

    def __init__(self, records: OwnerRecords) -> None:
        self.records = records

    async def projects(self, names: Iterable[str]) -> frozenset[str]:
        """Return the one project that all these belong to; nothing if none of them is known.

        Raises:
            InvalidRequestError: They belong to several.
        """
        owners: dict[str, str] = {}
        for name in names:
            owner = await self._owner(name)
            if owner is not None:
                owners.setdefault(owner, name)
        if len(owners) > 1:
            (first, one), (second, other), *_ = owners.items()
            raise InvalidRequestError(
                f"{one} belongs to project {first!r} and {other} to {second!r}: no key may use both: "
                "make the second one with a request that names the first"
            )
        return frozenset(owners)

    async def _owner(self, name: str) -> str | None:
        try:
            record = await self.records.get(name)
            return None if record is None else str(json.loads(record.value))
        except (StoreError, ValueError) as error:
            _log.debug("the project of a resource is not known: %s", error)
            return None

    async def remember(self, name: str, project: str) -> None:
        """Note that a thing was made for a project."""
        try:
            await self.records.put(name, json.dumps(project).encode())
        except StoreError as error:  # a later request that names it may go to another project, and fail there
            _log.warning("the project of %s could not be kept: %s", name, error)

    async def forget(self, name: str) -> None:
        """Note that a thing was deleted."""
        try:
            await self.records.delete(name)
        except StoreError as error:
            _log.debug("a deleted resource could not be forgotten: %s", error)
