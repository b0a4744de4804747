"""Which project an API key belongs to. The only place of the emulator that keeps keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Keyring"]


class Keyring:
    """The keys that are known, each with its project.

    Args:
        keys: The project of each key. None accepts every key; each is then a project of its own, called
            ``project-1``, ``project-2``, ... in order of appearance, so that no key shows in a record.

    Raises:
        ValueError: A project has the name of a key, which would show that key.
    """

    def __init__(self, keys: Mapping[str, str] | None) -> None:
        self._projects = dict(keys or {})
        self._open = keys is None
        if not self._projects.keys().isdisjoint(self._projects.values()):
            raise ValueError("a project of the emulator has the name of a key: give it another one")

    def project_of(self, key: str) -> str | None:
        """Return the project of ``key``, or None when the key is unknown."""
        project = self._projects.get(key)
        if project is None and self._open:
            project = self._projects[key] = f"project-{len(self._projects) + 1}"
        return project

    def __repr__(self) -> str:
        return f"Keyring({'any key' if self._open else f'{len(self._projects)} keys'})"
