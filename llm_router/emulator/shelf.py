"""What belongs to one project and expires: files, cached contents, interactions."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from llm_router.domain.clock import Clock

__all__ = ["Shelf", "timestamp"]

T = TypeVar("T")


class Shelf(Generic[T]):
    """Things by name, each of one project and until a time.

    Args:
        prefix: What every name begins with, such as ``files/``.
        clock: The clock by which things expire.
    """

    def __init__(self, prefix: str, clock: Clock) -> None:
        self._prefix = prefix
        self._clock = clock
        self._numbers = itertools.count(1)
        self._things: dict[str, tuple[str, float, T]] = {}

    def new_name(self) -> str:
        """Return a name that nothing has had."""
        return f"{self._prefix}emulated{next(self._numbers)}"

    def put(self, name: str, project: str, thing: T, expires: float) -> None:
        """Add a thing, or replace it; ``expires`` is in seconds since the Unix epoch."""
        self._things[name] = project, expires, thing

    def find(self, name: str, project: str) -> T | None:
        """Return a thing of ``project``; None if it does not exist, expired, or is another project's."""
        owner, expires, thing = self._things.get(name, (None, 0.0, None))
        return thing if owner == project and self._clock.time() < expires else None

    def all_of(self, project: str) -> list[T]:
        """Return the things of ``project``, oldest first."""
        found = (self.find(name, project) for name in tuple(self._things))
        return [thing for thing in found if thing is not None]

    def remove(self, name: str) -> None:
        """Remove a thing."""
        self._things.pop(name, None)


def timestamp(seconds: float) -> str:
    """Return a time, in seconds since the Unix epoch, as the API writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
