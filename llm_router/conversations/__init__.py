"""Conversations: sends that remember, and where their histories are kept."""

from llm_router.conversations.base import HistoryStore, Turn, VersionedHistoryStore
from llm_router.conversations.conversation import Conversation
from llm_router.conversations.memory import MemoryHistory
from llm_router.conversations.stored import StoredHistory
from llm_router.conversations.truncation import truncate

__all__ = [
    "Conversation",
    "HistoryStore",
    "MemoryHistory",
    "StoredHistory",
    "Turn",
    "VersionedHistoryStore",
    "truncate",
]
