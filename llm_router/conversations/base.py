"""The port between conversations and the store of their histories."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import attrs

__all__ = ["HistoryStore", "Turn", "VersionedHistoryStore"]


@attrs.frozen
class Turn:
    """What one send added to a conversation.

    Attributes:
        contents: What the user said, then what the model answered: plain dictionaries in the form of the
            Gemini API (``role`` and ``parts``). Signatures in the answer (``thoughtSignature``, base64) are
            understood by its ``model`` only; a conversation sends them to no other.
        tokens: Their estimated size, in tokens.
        answers_call: Whether it begins with the answer to a function call of the turn before, which must
            then stay with it.
        model: The model that answered, by the name of its deployment. None if it is not known, as in
            histories of earlier versions: signatures are then sent to every model.
    """

    contents: tuple[Any, ...]
    tokens: int
    answers_call: bool = False
    model: str | None = None


class HistoryStore(Protocol):
    """Keeps histories; implement it to share conversations between processes.

    The router reads a history, sends, and writes it back. Within a process, it does this for one
    conversation once at a time. A store may forget a history at any time: the conversation then starts anew.

    What a store returns need not be what it was given: turns with empty parts, or with a function call
    without its answer, are not sent. If all parts of the prompts are JSON, so are turns, except for images
    and other data that a model answered with, which are bytes.

    A method may raise anything. If :meth:`load` or :meth:`delete` does, the caller gets a
    :class:`~llm_router.errors.HistoryError`; if :meth:`save` does, a warning is logged and the turn is kept
    for the next :meth:`save`.
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


@runtime_checkable
class VersionedHistoryStore(HistoryStore, Protocol):
    """A history store that notices that another process has changed a conversation meanwhile.

    The router then uses these methods, so that no history is ever a mixture of what two processes said.
    """

    async def load_version(self, conversation_id: str) -> tuple[tuple[Turn, ...], int]:
        """Return the turns of a conversation, and their version: 0 if it is unknown.

        A version is never given to a conversation twice.
        """
        ...

    async def save_version(self, conversation_id: str, turns: tuple[Turn, ...], version: int) -> int:
        """Replace the turns of a conversation if they are still those of ``version``; return the new one.

        Raises:
            HistoryConflictError: They are not; nothing was changed.
        """
        ...
