"""The limits learnt for one scope as a database file holds them: packed, in one row.

Four of them take 60 to 100 bytes; with two rows for each, and the name of the scope in each, they took 650.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.domain.calendar import NEVER
from llm_router.domain.limits import LimitSource
from llm_router.domain.quota import MAX_LIMIT, Metric
from llm_router.stores.ledger import StoredLimit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["LimitPacker", "pack_limits", "unpack_limits"]

_METRICS = {1: Metric.RPM, 2: Metric.TPM, 3: Metric.RPD, 4: Metric.TPD}
_SOURCES = (LimitSource.CONFIGURED, LimitSource.STATED, LimitSource.INFERRED, LimitSource.UNKNOWN)
_NUMBERS = {metric: 10 * number for number, metric in _METRICS.items()} | {
    source: number for number, source in enumerate(_SOURCES)
}

_FIELDS = 5
_MORE = 128


def pack_limits(limits: Mapping[Metric, StoredLimit]) -> bytes:
    """Return limits in the form that ``limits.sql`` describes.

    Raises:
        TypeError, ValueError: A number of theirs makes no sense.
    """
    numbers: list[int] = []
    for metric, entry in limits.items():
        _check(entry)
        raise_at = entry.raise_at if entry.raise_at < NEVER else 0
        head = _NUMBERS[metric] + _NUMBERS[entry.source]
        numbers += head, entry.limit, entry.learnt_at, entry.raised, raise_at
    return _pack(numbers)


def unpack_limits(packed: bytes) -> dict[Metric, StoredLimit]:
    """Return the limits that :func:`pack_limits` packed.

    Raises:
        LookupError, TypeError, ValueError: It did not.
    """
    numbers = _unpack(packed)
    rows = zip(*(numbers[field::_FIELDS] for field in range(_FIELDS)), strict=True)
    return dict(_limit(*row) for row in rows)


def _limit(head: int, limit: int, learnt_at: int, raised: int, raise_at: int) -> tuple[Metric, StoredLimit]:
    metric, source = divmod(head, 10)
    entry = StoredLimit(limit, raised, raise_at or NEVER, learnt_at, _SOURCES[source])
    _check(entry)
    return _METRICS[metric], entry


def _check(entry: StoredLimit) -> None:
    """Refuse what no program has learnt: later it would fail every call, and not be known for damage."""
    limits_fit = all(0 <= limit <= MAX_LIMIT for limit in (entry.limit, entry.raised))
    if not (limits_fit and 0 <= entry.learnt_at < NEVER and 0 <= entry.raise_at <= NEVER):
        raise ValueError("a limit is out of bounds")


def _pack(numbers: Iterable[int]) -> bytes:
    packed = bytearray()
    for number in numbers:
        rest = number
        while rest >= _MORE:
            packed.append(rest % _MORE + _MORE)
            rest //= _MORE
        packed.append(rest)
    return bytes(packed)


def _unpack(packed: bytes) -> list[int]:
    numbers, number, place = [], 0, 1
    for byte in packed:
        number += byte % _MORE * place
        place *= _MORE
        if byte < _MORE:
            numbers.append(number)
            number, place = 0, 1
    if place > 1:
        raise ValueError("the last number is cut short")
    return numbers


class LimitPacker:
    """An aggregate function of SQL, by which ``limits.sql`` packs the limits of a scope."""

    def __init__(self) -> None:
        self._limits: dict[Metric, StoredLimit] = {}

    def step(
        self, metric: str, limit: int, learnt_at: int, raised: int, raise_at: int | None, source: str
    ) -> None:
        """Add the limit of a metric."""
        raise_at = NEVER if raise_at is None else raise_at
        self._limits[Metric(metric)] = StoredLimit(limit, raised, raise_at, learnt_at, LimitSource(source))

    def finalize(self) -> bytes:
        """Return all of them."""
        return pack_limits(self._limits)
