"""Bound the label values of metrics: what callers may choose freely must not make series without end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["OTHER", "BoundedLabels", "metadata_values"]

OTHER = "other"
"""The value in place of one that would be one too many."""


class BoundedLabels:
    """Admits a number of combinations of free values, first come, first served; later ones become "other".

    Args:
        most: How many combinations there may be.
    """

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[tuple[str, ...]] = set()

    def admit(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return ``values``, or as many times "other" if they are one combination too many."""
        seen = self._seen
        if values in seen:
            return values
        if len(seen) < self._most:
            seen.add(values)
            return values
        return (OTHER,) * len(values)


def metadata_values(metadata: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the values of ``names``, with "" for what is missing."""
    return tuple([metadata.get(name, "") for name in names])
