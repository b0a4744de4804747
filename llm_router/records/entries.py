"""What all record stores do alike: check arguments, and write the counts of a name as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

from llm_router.domain.calendar import microseconds
from llm_router.domain.numbers import real, shown, whole
from llm_router.errors import ConfigError, InvalidRequestError, RecordConflictError, RecordTooLargeError
from llm_router.records.base import MAX_TTL, Bounds

__all__ = [
    "HIGHEST",
    "BoundsOf",
    "added",
    "amounts_of",
    "conflict",
    "counts_in",
    "limit_of",
    "name_of",
    "pairs_of",
    "prefix_of",
    "timeout_of",
    "too_large",
    "ttl_of",
    "version_of",
]

HIGHEST = 2**53 - 1
"""The highest count: above it, a Redis script cannot count by one."""

_MAX_NAME = 512
_SPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PAIR = re.compile(r"([^=;]+)=(-?\d+);")


class BoundsOf:
    """The bounds of each space, and under which name a store keeps its records and its counts.

    Args:
        bounds: Those of the spaces that have others than :class:`Bounds` has by default.

    Raises:
        ConfigError: It is not a mapping of spaces to bounds.
    """

    def __init__(self, bounds: Mapping[str, Bounds] | None) -> None:
        self._bounds = dict(bounds or {})
        for space, each in self._bounds.items():
            if not isinstance(space, str) or not _SPACE.fullmatch(space) or not isinstance(each, Bounds):
                raise ConfigError(
                    f"bounds must map spaces to Bounds, not {shown(space)} to {shown(each)}: "
                    "pass {'cache': Bounds(size=2**20)}"
                )
        self._default = Bounds()

    def of(self, space: str) -> Bounds:
        """Return the bounds of a space, by the name of its records or its counts."""
        return self._bounds.get(space.removesuffix("#"), self._default)

    @staticmethod
    def records(space: object) -> str:
        """Return where the records of a space are.

        Raises:
            InvalidRequestError: There can be no such space.
        """
        if not isinstance(space, str) or not _SPACE.fullmatch(space):
            raise InvalidRequestError(
                f"a space must have 1 to 64 letters, digits, -, _ and dots, not {shown(space)}"
            )
        return space

    @classmethod
    def counts(cls, space: object) -> str:
        """Return where the counts of a space are.

        Raises:
            InvalidRequestError: There can be no such space.
        """
        return cls.records(space) + "#"

    def check_size(self, space: str, name: str, data: object) -> bytes:
        """Return the data of a record.

        Raises:
            InvalidRequestError: They are not bytes.
            RecordTooLargeError: They are too many.
        """
        if not isinstance(data, bytes):
            raise InvalidRequestError(f"data must be bytes, not a {type(data).__name__}")
        if len(data) + len(name.encode()) > self.largest(space):
            raise self.too_large(space)
        return data

    def largest(self, space: str) -> int:
        """Return the most bytes of one record, its name included."""
        bounds = self.of(space)
        return min(bounds.largest, bounds.size)

    def too_large(self, space: str) -> RecordTooLargeError:
        """Return the error for more than that."""
        return too_large(space, self.largest(space))


def too_large(space: str, largest: int) -> RecordTooLargeError:
    """Return the error for a record that has more bytes than ``largest``."""
    return RecordTooLargeError(
        f"a record of {space.removesuffix('#')!r} may have {largest} bytes, with its name: keep less in it, "
        "or allow more in the bounds of the space"
    )


def conflict(space: str, expected: int, present: int) -> RecordConflictError:
    """Return the error for a record that is not the version expected. It does not show the name."""
    found = f"its version is {present}" if present else "it is not there"
    wanted = f"version {expected} was to be replaced" if expected else "it was to be new"
    return RecordConflictError(f"a record of {space!r} has changed: {wanted}, but {found}", version=present)


# --- arguments ----------------------------------------------------------------------------------------


def name_of(name: object) -> str:
    """Return a name.

    Raises:
        InvalidRequestError: It cannot be one.
    """
    if isinstance(name, str) and name and "\0" not in name and _bytes(name) <= _MAX_NAME:
        return name
    found = "empty, too long, or has odd characters" if isinstance(name, str) else f"a {type(name).__name__}"
    raise InvalidRequestError(
        f"the name of a record must have 1 to {_MAX_NAME} bytes of UTF-8 without NUL: this one is {found}"
    )


def prefix_of(prefix: object) -> str:
    """Return the beginning of a name.

    Raises:
        InvalidRequestError: No name begins so.
    """
    return name_of(prefix) if prefix != "" else ""


def _bytes(text: str) -> float:
    try:
        return len(text.encode())
    except UnicodeError:  # half of a surrogate pair
        return math.inf


def ttl_of(ttl: object) -> int:
    """Return how long a record lasts, in microseconds.

    Raises:
        InvalidRequestError: It is not such a number of seconds.
    """
    seconds = real(ttl)
    if not 0 < seconds <= MAX_TTL:
        raise InvalidRequestError(f"ttl must be above 0 and at most {MAX_TTL:.0f} seconds, not {shown(ttl)}")
    return max(microseconds(seconds), 1)


def timeout_of(timeout: object) -> float:
    """Return for how many seconds a store waits.

    Raises:
        ConfigError: It is not such a number.
    """
    seconds = real(timeout)
    if not 0 < seconds < math.inf:
        raise ConfigError(
            f"the timeout of a record store must be a number of seconds above 0, not {shown(timeout)}"
        )
    return seconds


def version_of(version: object) -> int | None:
    """Return the version that is to be replaced.

    Raises:
        InvalidRequestError: It is not a version.
    """
    number = whole(version)
    if version is None or (number is not None and 0 <= number <= HIGHEST):
        return number
    raise InvalidRequestError(f"version must be one that put() or get() returned, or 0, not {shown(version)}")


def limit_of(limit: object) -> int:
    """Return how many names are asked for.

    Raises:
        InvalidRequestError: It is not such a number.
    """
    number = whole(limit)
    if number is None or not 0 < number <= HIGHEST:
        raise InvalidRequestError(f"limit must be a whole number above 0, not {shown(limit)}")
    return number


def amounts_of(amounts: object) -> dict[str, int]:
    """Return what is to be added.

    Raises:
        InvalidRequestError: It is nothing, or not names and whole numbers.
    """
    if not isinstance(amounts, Mapping) or not amounts:
        raise InvalidRequestError("amounts must be a mapping of fields to whole numbers: {'requests': 1}")
    found = {}
    for field, amount in amounts.items():
        number = whole(amount)
        if number is None or abs(number) > HIGHEST:
            raise InvalidRequestError(f"what is added must be a whole number, not {shown(amount)}")
        found[name_of(field)] = number
    return found


# --- counts as text -----------------------------------------------------------------------------------


def pairs_of(amounts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield the fields as they stand in the text, and their amounts."""
    return ((quote(field, safe=""), amount) for field, amount in amounts.items())


def added(text: bytes, amounts: Mapping[str, int]) -> bytes:
    """Return the text of counts after adding to them."""
    counts = {field: int(number) for field, number in _PAIR.findall(text.decode(errors="replace"))}
    for field, amount in pairs_of(amounts):
        counts[field] = max(-HIGHEST, min(counts.get(field, 0) + amount, HIGHEST))
    return "".join(f"{field}={number};" for field, number in counts.items()).encode()


def counts_in(text: bytes) -> dict[str, int]:
    """Return the counts in their text."""
    pairs = _PAIR.findall(text.decode(errors="replace"))
    return {unquote(field): int(number) for field, number in pairs}
