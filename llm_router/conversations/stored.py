"""Histories in a record store, where they outlive the process and are shared."""

from __future__ import annotations

from llm_router.conversations.base import Turn
from llm_router.conversations.serial import read_turns, write_turn, write_turns
from llm_router.errors import HistoryConflictError, RecordConflictError, RecordTooLargeError
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.naming import short_name

__all__ = ["HISTORIES", "HISTORY_BOUNDS", "StoredHistory"]

HISTORIES = "histories"
"""The space in which histories are kept."""

HISTORY_BOUNDS = Bounds(records=10_000, size=256 * 2**20, largest=8 * 2**20)
"""How much that may be in the record stores that a router opens."""

_MAX_AGE = 30 * 86_400.0


class StoredHistory:
    """Keeps conversations in a record store; a :class:`VersionedHistoryStore`.

    How many, and how large, is up to the bounds of the space ``histories`` of the record store: the
    conversation saved longest ago is forgotten first, and the oldest turns of one that is too large. Parts
    come back as they were given; objects of the SDK as dictionaries that mean the same.

    Args:
        records: Where they are kept. The caller closes it.
        max_age: Seconds after which a conversation that was not saved again is forgotten.
    """

    def __init__(self, records: RecordStore, *, max_age: float = _MAX_AGE) -> None:
        self._records = records
        self._max_age = max_age

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        """Return the turns of a conversation, oldest first; an empty tuple if it is unknown or forgotten."""
        return (await self.load_version(conversation_id))[0]

    async def load_version(self, conversation_id: str) -> tuple[tuple[Turn, ...], int]:
        """Return the turns of a conversation, and their version; see :class:`VersionedHistoryStore`."""
        record = await self._records.get(HISTORIES, short_name(conversation_id))
        return ((), 0) if record is None else (read_turns(record.data), record.version)

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        """Replace the turns of a conversation, whatever they are by now."""
        await self._put(conversation_id, turns, None)

    async def save_version(self, conversation_id: str, turns: tuple[Turn, ...], version: int) -> int:
        """Replace a version of the turns of a conversation; see :class:`VersionedHistoryStore`."""
        try:
            return await self._put(conversation_id, turns, version)
        except RecordConflictError:
            raise HistoryConflictError(
                f"conversation {conversation_id!r} was changed by another process meanwhile: this turn is "
                "not remembered; its answer is the response of this error"
            ) from None

    async def delete(self, conversation_id: str) -> None:
        """Forget a conversation."""
        await self._records.delete(HISTORIES, short_name(conversation_id))

    async def _put(self, conversation_id: str, turns: tuple[Turn, ...], version: int | None) -> int:
        name = short_name(conversation_id)
        written = [write_turn(turn) for turn in turns]
        while True:
            try:
                return await self._records.put(
                    HISTORIES, name, write_turns(written), ttl=self._max_age, version=version
                )
            except RecordTooLargeError:
                if len(written) < 2:  # noqa: PLR2004 - the turn that is to be remembered
                    raise
                del written[0]

    def __repr__(self) -> str:
        return f"StoredHistory({self._records!r})"
