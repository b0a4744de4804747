"""The history of one conversation, between its handles and the history store."""

from __future__ import annotations

import anyio

from llm_router.conversations.base import HistoryStore, Turn, VersionedHistoryStore
from llm_router.conversations.contents import clean_turn
from llm_router.errors import HistoryConflictError, HistoryError

__all__ = ["History"]


class History:
    """The history of one conversation; all handles on it share one object, which lives as long as they do.

    Args:
        store: Where the history is kept.
        conversation_id: Names it.

    Attributes:
        lock: Makes the sends of the conversation take turns.
    """

    __slots__ = ("__weakref__", "_id", "_store", "_unsaved", "_version", "lock")

    def __init__(self, store: HistoryStore, conversation_id: str) -> None:
        self.lock = anyio.Semaphore(1, max_value=1)  # without an owner: another task may leave a stream
        self._store = store
        self._id = conversation_id
        self._unsaved: tuple[Turn, ...] = ()
        self._version = 0  # of what was loaded or saved last, if the store has versions

    async def load(self) -> tuple[Turn, ...]:
        """Return the turns that can be sent, oldest first, with those that could not be saved.

        Raises:
            HistoryError: The store failed, or what it returned are not turns.
            HistoryConflictError: Another process has continued the conversation without what could not be
                saved, which is forgotten.
        """
        turns, version = await self._read()
        changed, self._version = version != self._version, version
        if self._unsaved and turns and changed:
            self._reconcile(turns)
        return _continued(turns, self._unsaved)

    async def look(self) -> tuple[Turn, ...]:
        """Return the same as :meth:`load`, but leave what the next :meth:`save` replaces as it is.

        Raises:
            HistoryError: The store failed, or what it returned are not turns.
        """
        turns, version = await self._read()
        unsaved = self._unsaved if not turns or version == self._version else ()
        return _continued(turns, unsaved)

    async def _read(self) -> tuple[tuple[Turn, ...], int]:
        version = self._version
        try:
            if isinstance(self._store, VersionedHistoryStore):
                stored, version = await self._store.load_version(self._id)
            else:
                stored = await self._store.load(self._id)
            return tuple(turn for each in stored or () if (turn := clean_turn(each)) is not None), version
        except Exception as error:
            raise self._failed("load", error) from error

    def _reconcile(self, turns: tuple[Turn, ...]) -> None:
        """Forget the turns that could not be saved, unless what is stored now continues with them.

        Raises:
            HistoryConflictError: They are not stored, but another process has stored something else.
        """
        if _stored_of(turns, self._unsaved):
            return
        unsaved, self._unsaved = self._unsaved, ()
        stored = [each.contents for each in turns]
        if any(each.contents not in stored for each in unsaved):
            raise HistoryConflictError(
                f"another process has continued conversation {self._id!r} while turns of this one could "
                "not be saved; they are not remembered, and nothing was sent: send again to continue what is "
                "stored"
            )

    async def save(self, turns: tuple[Turn, ...], new: tuple[Turn, ...]) -> None:
        """Replace the history by ``turns`` and ``new`` ones, which are kept here until the store has them.

        Raises:
            HistoryConflictError: Another process has changed it meanwhile; the turns are forgotten.
            Exception: Whatever the store raises; also after a cancellation the turns are kept.
        """
        # What was cut off from the history is forgotten here, too; equal turns may be said again and again.
        kept = {id(each) for each in turns}
        self._unsaved = (*(each for each in self._unsaved if id(each) in kept), *new)
        if isinstance(self._store, VersionedHistoryStore):
            try:
                self._version = await self._store.save_version(self._id, (*turns, *new), self._version)
            except HistoryConflictError:
                self._unsaved = ()
                raise
        else:
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
    """Return ``turns`` followed by the unsaved ones that are not among them."""
    return (*turns, *unsaved[_stored_of(turns, unsaved) :])


def _stored_of(turns: tuple[Turn, ...], unsaved: tuple[Turn, ...]) -> int:
    """Return with how many of the unsaved ones ``turns`` end: a save that failed may yet have stored them."""
    for stored in range(len(unsaved), 0, -1):
        if [each.contents for each in turns[-stored:]] == [each.contents for each in unsaved[:stored]]:
            return stored
    return 0
