"""The port between conversations and whatever keeps their histories."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

__all__ = ["HistoryStore", "Turn"]


@attrs.frozen
class Turn:
    """What one send added to a conversation.

    Attributes:
        contents: What was said by the user, then what the model answered: plain dictionaries in the form of
            the Gemini API (``role`` and ``parts``), which belong to no key and no model.
        tokens: Their estimated size, in tokens.
        answers_call: Whether it begins with the answer to a function call of the turn before, from which it
            must not be parted.
    """

    contents: tuple[Any, ...]
    tokens: int
    answers_call: bool = False


class HistoryStore(Protocol):
    """Keeps histories; implement it to share conversations between processes.

    The router reads a history, sends, and writes it back; it never does so twice at a time for one
    conversation within a process. Histories may be forgotten at any time: a conversation then starts anew.
    """

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        """Return the turns of a conversation, oldest first; none for an unknown one."""
        ...

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        """Replace the turns of a conversation."""
        ...

    async def delete(self, conversation_id: str) -> None:
        """Forget a conversation; an unknown one is no error."""
        ...
