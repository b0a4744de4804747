"""The port between conversations and the store of their histories."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

__all__ = ["HistoryStore", "Turn"]


@attrs.frozen
class Turn:
    """What one send added to a conversation.

    Attributes:
        contents: What the user said, then what the model answered: plain dictionaries in the form of the
            Gemini API (``role`` and ``parts``), which any key and any model can be sent.
        tokens: Their estimated size, in tokens.
        answers_call: Whether it begins with the answer to a function call of the turn before, which must
            then stay with it.
    """

    contents: tuple[Any, ...]
    tokens: int
    answers_call: bool = False


class HistoryStore(Protocol):
    """Keeps histories; implement it to share conversations between processes.

    The router reads a history, sends, and writes it back. Within a process, it does this for one
    conversation once at a time. A store may forget a history at any time: the conversation then starts anew.
    """

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        """Return the turns of a conversation, oldest first; an empty tuple if it is unknown."""
        ...

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        """Replace the turns of a conversation."""
        ...

    async def delete(self, conversation_id: str) -> None:
        """Forget a conversation; do nothing if it is unknown."""
        ...
