"""Which project stored things belong to: files, cached contents, interactions, uploads that have begun."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from llm_router.domain.exchange import PAGES
from llm_router.errors import InvalidRequestError, StoreError
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.naming import digest_name

__all__ = ["CALLERS", "OWNERS", "OWNER_BOUNDS", "OWNER_LIFE", "Resources"]

_log = logging.getLogger("llm_router")

OWNERS = "owners"
"""The space in which owners are kept."""

CALLERS = "callers"
"""The space in which a gateway keeps which of its callers owns what, and what each has used."""

OWNER_BOUNDS = Bounds(records=100_000)
"""How many there may be in the record stores that a router opens."""

OWNER_LIFE = 60 * 86_400.0
"""Seconds for which an owner is remembered: longer than the provider keeps all but tuned models."""

_PAGE_LIFE = 3600.0
"""Seconds for which the next page of a list is remembered: who reads a list goes on soon."""


class Resources:
    """Remembers to which project things belong that the provider made for one of its keys.

    Args:
        records: Where that is kept. One that fails is as one that has forgotten. It is not told the names,
            since with that of an upload anybody could go on with it.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records

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
            record = await self._records.get(OWNERS, digest_name(name))
            return None if record is None else str(json.loads(record.data))
        except (StoreError, ValueError) as error:
            _log.debug("the project of a resource is not known: %s", error)
            return None

    async def remember(self, name: str, project: str) -> None:
        """Note that a thing was made for a project."""
        try:
            ttl = _PAGE_LIFE if name.startswith(PAGES) else OWNER_LIFE
            await self._records.put(OWNERS, digest_name(name), json.dumps(project).encode(), ttl=ttl)
        except StoreError as error:  # a later request that names it may go to another project, and fail there
            kind = name.partition("/")[0]
            _log.warning("to which project one of %s belongs could not be kept: %s", kind, error)

    async def forget(self, name: str) -> None:
        """Note that a thing was deleted."""
        try:
            await self._records.delete(OWNERS, digest_name(name))
        except StoreError as error:
            _log.debug("a deleted resource could not be forgotten: %s", error)
