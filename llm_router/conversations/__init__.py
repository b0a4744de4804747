"""Conversations: sends that remember, and where their histories are kept."""

from llm_router.conversations.base import HistoryStore, Turn
from llm_router.conversations.conversation import Conversation
from llm_router.conversations.memory import MemoryHistory
from llm_router.conversations.truncation import truncate

__all__ = ["Conversation", "HistoryStore", "MemoryHistory", "Turn", "truncate"]
