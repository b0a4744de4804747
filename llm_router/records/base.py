"""The port between the library and whatever keeps its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import attrs

from llm_router.domain.numbers import shown, whole
from llm_router.errors import ConfigError

__all__ = ["MAX_TTL", "Bounds", "Record", "RecordStore"]

MAX_TTL = 10 * 366 * 86_400.0
"""Most seconds that a record may last."""


def _is_positive(_bounds: object, attribute: attrs.Attribute[int], value: object) -> None:
    number = whole(value)
    if number is None or number < 1:
        raise ConfigError(f"{attribute.name} of Bounds must be a whole number above 0, not {shown(value)}")


@attrs.frozen
class Bounds:
    """How much one space may hold. Its counts are bounded in the same way, apart from its records.

    Attributes:
        records: The most records.
        size: The most bytes of all of them together, names included.
        largest: The most bytes of one of them, its name included; at most ``size`` applies.

    Raises:
        ConfigError: One of them is not a whole number above 0.
    """

    records: int = attrs.field(default=10_000, validator=_is_positive)
    size: int = attrs.field(default=64 * 2**20, validator=_is_positive)
    largest: int = attrs.field(default=8 * 2**20, validator=_is_positive)


@attrs.frozen
class Record:
    """What is kept under a name.

    Attributes:
        data: The bytes that were put.
        version: Grows with every put, also over the time in which there was no such record; above 0.
        expires: When it will be forgotten, in seconds since the Unix epoch.
    """

    data: bytes
    version: int
    expires: float


@runtime_checkable
class RecordStore(Protocol):
    """Keeps records and counts by space and name.

    A space is what one part of the library keeps, such as ``histories``: 1 to 64 letters, digits and ``-_.``.
    A name has 1 to 512 bytes of UTF-8. The record and the counts of a name have nothing to do with each
    other.

    Every store promises:

    * **Atomicity.** Each call happens at once or not at all, for all processes that share the store.
    * **Versions.** No version of a name is ever given twice, whatever is deleted or forgotten in between; so
      a :meth:`put` for a version replaces what its caller has read, and nothing else.
    * **Bounds.** When a space is full, what has expired is forgotten first, then what was put or added to
      longest ago. The store may forget more than it must, such as all of a server that was emptied.

    Not promised: that a call that was cancelled, or that failed, has changed nothing.

    Every method may raise :class:`~llm_router.errors.StoreError`, or for a wrong argument
    :class:`~llm_router.errors.InvalidRequestError`.
    """

    async def get(self, space: str, name: str) -> Record | None:
        """Return a record; None if there is none, or no longer."""
        ...

    async def put(self, space: str, name: str, data: bytes, *, ttl: float, version: int | None = None) -> int:
        """Keep ``data`` under a name.

        Args:
            space: The space.
            name: The name.
            data: What to keep.
            ttl: Seconds after which it is forgotten, above 0 and at most ``MAX_TTL`` (ten years).
            version: The version that it is to replace; 0 if there must be none; None for whatever there is.

        Returns:
            Its version.

        Raises:
            RecordConflictError: There is another version.
            RecordTooLargeError: It is larger than a record of the space may be.
        """
        ...

    async def delete(self, space: str, name: str) -> None:
        """Forget the record and the counts of a name; do nothing if there are none."""
        ...

    async def names(self, space: str, prefix: str = "", *, limit: int = 100) -> list[str]:
        """Return the names of the records of a space that begin with ``prefix``, the last put first."""
        ...

    async def add(
        self, space: str, name: str, amounts: Mapping[str, int], *, ttl: float
    ) -> Mapping[str, int]:
        """Add to the counts of a name, each of which begins at 0, and stays within plus or minus 2**53 - 1.

        Args:
            space: The space.
            name: The name.
            amounts: What to add to each field; also negative, or 0.
            ttl: Seconds after which all counts of the name are forgotten unless something is added again.

        Returns:
            All counts of the name, with what was added.

        Raises:
            RecordTooLargeError: There are more fields than a record of the space may have bytes for.
        """
        ...

    async def counts(
        self, space: str, prefix: str = "", *, limit: int = 10_000
    ) -> Mapping[str, Mapping[str, int]]:
        """Return the counts of the names that begin with ``prefix``, the last added to first."""
        ...

    async def aclose(self) -> None:
        """Release what the store holds open. May be called twice; the next call opens it again."""
        ...
