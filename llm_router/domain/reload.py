"""What a reload has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

__all__ = ["ReloadReport"]

_MOST_NAMED = 20


@attrs.frozen
class ReloadReport:
    """What a reload has changed; false if nothing, and readable as a string.

    Attributes:
        added: The ids (``key_id/model``) of the deployments that are used from now on.
        removed: The ids of those that are not used any more.
        changed: The ids of those that have changed, each with what has: ``"secret"``, ``"rpm 10 → 20"``, ….
        settings: The other settings that have changed, by name.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, hash=False)
    settings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.settings)

    def __str__(self) -> str:
        changed = [f"{name} ({', '.join(what)})" for name, what in self.changed.items()]
        groups = {
            "added": self.added,
            "removed": self.removed,
            "changed": changed,
            "settings": self.settings,
        }
        shown = (f"{word}: {_listed(names)}" for word, names in groups.items() if names)
        return "; ".join(shown) or "nothing has changed"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
