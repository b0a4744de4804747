"""Reading the records of a space together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llm_router.records.base import Record, RecordStore

__all__ = ["records_in"]


async def records_in(
    store: RecordStore, space: str, limit: int, wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, Record]:
    """Return the records of a space by their names, without those that are gone before they are read.

    Args:
        store: Where they are.
        space: The space.
        limit: Of how many the names are asked for at most.
        wanted: Says of a name whether its record is read.

    Raises:
        StoreError: The store failed.
    """
    names = [name for name in await store.names(space, limit=limit) if wanted(name)]
    found = await asyncio.gather(*(store.get(space, name) for name in names))
    return {name: record for name, record in zip(names, found, strict=True) if record is not None}
