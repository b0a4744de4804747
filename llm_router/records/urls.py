"""Opens record stores by the URLs of the quotas beside which they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm_router.domain.clock import Clock
from llm_router.errors import ConfigError
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.memory import MemoryRecords
from llm_router.stores.urls import is_memory, open_store, sqlite_path

__all__ = ["OpenedRecords", "open_records", "records_path"]

# The adapters are imported when they are opened, as those of the quotas are.


def open_records(
    url: str, *, bounds: Mapping[str, Bounds] | None = None, clock: Clock | None = None
) -> RecordStore:
    """Open the record store that lies beside the quotas of a URL. It connects when it is first used.

    Args:
        url: As for :func:`~llm_router.stores.urls.open_store`. Of ``sqlite:////path/state.sqlite3`` the
            records are in ``/path/state.records.sqlite3``; a file whose name has ``.records`` before its
            ending already is taken as it is.
        bounds: The bounds of each space; those of :class:`Bounds` for others.
        clock: The source of time; by default the store's own choice (Redis: the clock of its server).

    Raises:
        ConfigError: The scheme of the URL is unknown, or the URL is incomplete or wrong; or the bounds are.
    """
    path = sqlite_path(url)
    if path is not None:
        from llm_router.records.sqlite import SQLiteRecords  # noqa: PLC0415

        return SQLiteRecords(records_path(path), bounds=bounds, clock=clock)
    open_store(url)  # which checks the URL, and connects to nothing
    if is_memory(url):
        return MemoryRecords(bounds=bounds, clock=clock)
    from llm_router.records.redis import RedisRecords  # noqa: PLC0415

    return RedisRecords(url, bounds=bounds, clock=clock)


def records_path(path: Path) -> Path:
    """Return the file of the records that lies beside the quotas in another file."""
    return path if path.stem.endswith(".records") else path.with_stem(f"{path.stem}.records")


class OpenedRecords:
    """Opens record stores, and closes all of them.

    Args:
        bounds: The bounds of the spaces that they keep.
        clock: The source of time; None for each store's own choice.
    """

    def __init__(self, bounds: Mapping[str, Bounds], clock: Clock | None) -> None:
        self._bounds = bounds
        self._clock = clock
        self._opened: dict[str, RecordStore] = {}

    def at(self, url: str, argument: str) -> RecordStore:
        """Return the record store of a URL, which all that ask for it share.

        Args:
            url: The URL.
            argument: What the user gave it as.

        Raises:
            ConfigError: The URL is wrong.
        """
        store = self._opened.get(url)
        if store is None:
            try:
                store = self._opened[url] = open_records(url, bounds=self._bounds, clock=self._clock)
            except ConfigError as error:
                raise ConfigError(f"{argument}: {error}") from None
        return store

    async def aclose(self) -> None:
        """Close what was opened. May be called twice."""
        for store in self._opened.values():
            await store.aclose()
