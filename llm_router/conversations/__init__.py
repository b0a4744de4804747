"""Histories of conversations: kept, cut to size, and portable between keys and models."""

from llm_router.conversations.base import HistoryStore, Turn
from llm_router.conversations.memory import MemoryHistory
from llm_router.conversations.truncation import truncate

__all__ = ["HistoryStore", "MemoryHistory", "Turn", "truncate"]
