"""The project of each API key: the only place in the emulator that keeps keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Keyring"]


class Keyring:
    """The known keys, each with its project.

    Args:
        keys: The project of each key. None accepts every key; each is then its own project, named
            ``project-1``, ``project-2``, ... in order of appearance, so that no record shows a key.

    Raises:
        ValueError: A project has the name of a key, and would show it.
    """

    def __init__(self, keys: Mapping[str, str] | None) -> None:
        self._projects = dict(keys or {})
        self._open = keys is None
        if not self._projects.keys().isdisjoint(self._projects.values()):
            raise ValueError("a project of the emulator has the name of a key: give it another one")

    def project_of(self, key: str) -> str | None:
        """Return the project of ``key``, or None if the key is unknown."""
        project = self._projects.get(key)
        if project is None and self._open:
            project = self._projects[key] = f"project-{len(self._projects) + 1}"
        return project

    def __repr__(self) -> str:
        return f"Keyring({'any key' if self._open else f'{len(self._projects)} keys'})"
