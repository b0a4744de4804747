"""The store in an SQLite file."""

from llm_router.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
