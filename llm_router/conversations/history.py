"""The history of one conversation, between its handles and the history store."""

from __future__ import annotations

import anyio

from llm_router.conversations.base import HistoryStore, Turn
from llm_router.conversations.contents import clean_turn
from llm_router.errors import HistoryError

__all__ = ["History"]


class History:
    """The history of one conversation; all handles on it share one object, which lives as long as they do.

    Args:
        store: Where the history is kept.
        conversation_id: Names it.

    Attributes:
        lock: Makes the sends of the conversation take turns.
    """

    __slots__ = ("__weakref__", "_id", "_store", "_unsaved", "lock")

    def __init__(self, store: HistoryStore, conversation_id: str) -> None:
        self.lock = anyio.Semaphore(1, max_value=1)  # without an owner: another task may leave a stream
        self._store = store
        self._id = conversation_id
        self._unsaved: tuple[Turn, ...] = ()

    async def load(self) -> tuple[Turn, ...]:
        """Return the turns that can be sent, oldest first, with those that could not be saved.

        Raises:
            HistoryError: The store failed, or what it returned are not turns.
        """
        try:
            stored = await self._store.load(self._id)
            turns = tuple(turn for each in stored or () if (turn := clean_turn(each)) is not None)
        except Exception as error:
            raise self._failed("load", error) from error
        return _continued(turns, self._unsaved)

    async def save(self, turns: tuple[Turn, ...], new: tuple[Turn, ...]) -> None:
        """Replace the history by ``turns`` and ``new`` ones, which are kept here until the store has them.

        Raises:
            Exception: Whatever the store raises; also after a cancellation the turns are kept.
        """
        # What was cut off from the history is forgotten here, too; equal turns may be said again and again.
        kept = {id(each) for each in turns}
        self._unsaved = (*(each for each in self._unsaved if id(each) in kept), *new)
        await self._store.save(self._id, (*turns, *new))
        self._unsaved = ()

    async def delete(self) -> None:
        """Forget the history, also what could not be saved.

        Raises:
            HistoryError: The store failed.
        """
        self._unsaved = ()
        try:
            await self._store.delete(self._id)
        except Exception as error:
            raise self._failed("delete", error) from error

    def _failed(self, method: str, error: Exception) -> HistoryError:
        name = f"{type(self._store).__name__}.{method}()"
        return HistoryError(f"{name} failed for conversation {self._id!r}: {type(error).__name__}")


def _continued(turns: tuple[Turn, ...], unsaved: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return ``turns`` followed by the unsaved ones; a save that failed may yet have stored some of them."""
    for stored in range(len(unsaved), 0, -1):
        if [each.contents for each in turns[-stored:]] == [each.contents for each in unsaved[:stored]]:
            return (*turns, *unsaved[stored:])
    return (*turns, *unsaved)
