"""Histories in the memory of one process, bounded in number and age."""

from __future__ import annotations

from collections import OrderedDict

from llm_router.conversations.base import Turn
from llm_router.domain.clock import Clock, SystemClock

__all__ = ["MemoryHistory"]


class MemoryHistory:
    """Keeps the most recent conversations.

    Args:
        most: The most conversations to keep; the one saved longest ago is forgotten first.
        max_age: Seconds after which a conversation that was not saved again is forgotten.
        clock: The source of time; the machine's clock by default.
    """

    def __init__(
        self, *, most: int = 1_000, max_age: float = 24 * 3600.0, clock: Clock | None = None
    ) -> None:
        self._most = most
        self._max_age = max_age
        self._clock = clock or SystemClock()
        self._histories: OrderedDict[str, tuple[float, tuple[Turn, ...]]] = OrderedDict()

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        """Return the turns of a conversation, oldest first; an empty tuple if it is unknown or forgotten."""
        self._forget()
        return self._histories.get(conversation_id, (0.0, ()))[1]

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        """Replace the turns of a conversation, which becomes the most recent one."""
        self._histories[conversation_id] = (self._clock.time(), turns)
        self._histories.move_to_end(conversation_id)
        self._forget()

    async def delete(self, conversation_id: str) -> None:
        """Forget a conversation."""
        self._histories.pop(conversation_id, None)

    def _forget(self) -> None:
        oldest = self._clock.time() - self._max_age
        while self._histories:
            used_at, _ = next(iter(self._histories.values()))
            if len(self._histories) <= self._most and used_at > oldest:
                return
            self._histories.popitem(last=False)

    def __len__(self) -> int:
        return len(self._histories)

    def __repr__(self) -> str:
        return f"MemoryHistory({len(self)} of {self._most} conversations)"
