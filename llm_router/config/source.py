"""Where the settings of a router come from, so that they can be read again."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from llm_router.config.environment import Environ
from llm_router.config.settings import Settings, load_settings
from llm_router.domain.quota import GUARD
from llm_router.errors import ConfigError

__all__ = ["ConfigSource"]


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return Path()


@attrs.frozen(eq=False)
class ConfigSource:
    """The files and the environment that settings are loaded from; see :func:`load_settings`.

    Attributes:
        path: The keys file.
        env: The environment; None for ``os.environ``, as it is then.
        env_file: The file of variables.
        guard: Seconds added to the window of each quota.
        store_needed: Whether the store that the environment names is used.
        base_url_needed: The same for the base URL.
        providers: The names of the known providers.
    """

    path: Path
    env: Environ | None = None
    env_file: str | os.PathLike[str] | None = ".env"
    guard: float = GUARD
    store_needed: bool = True
    base_url_needed: bool = True
    providers: tuple[str, ...] = ("gemini",)
    _folder: Path = attrs.field(factory=_working_directory, init=False)

    def load(self) -> Settings:
        """Load the settings.

        Raises:
            ConfigError: The configuration has errors.
        """
        return self._load(self.path, self.env_file)

    def _load(self, path: Path, env_file: str | os.PathLike[str] | None) -> Settings:
        return load_settings(
            path,
            env=self.env,
            env_file=env_file,
            guard=self.guard,
            store_needed=self.store_needed,
            providers=self.providers,
        )

    def load_after(self, before: Settings) -> Settings:
        """Load the settings for a router that runs on ``before``, wherever the process works by now.

        Raises:
            ConfigError: As for :meth:`load`; or something has changed that cannot while a router runs.
        """
        path, *env_files = self.files
        env_file = next(filter(os.path.lexists, env_files), self.env_file)
        settings = self._load(path, env_file)
        fixed = self._fixed(before, settings)
        if fixed is not None:
            raise ConfigError(
                f"{fixed} has changed, which a running router cannot follow, so nothing was changed: "
                "restart the program, or set it back"
            )
        return settings

    @property
    def files(self) -> tuple[Path, ...]:
        """The keys file, and where the file of variables may be, best first."""
        path = self._folder / self.path
        if self.env_file is None:
            return (path,)
        return tuple(dict.fromkeys((path, path.parent / self.env_file, self._folder / self.env_file)))

    def _fixed(self, before: Settings, after: Settings) -> str | None:
        """Return what has changed of what cannot, or None; not its values, which may contain a password."""
        if self.store_needed and before.store_url != after.store_url:
            return "the store (LLM_ROUTER_STORE, REDIS_URL)"
        if self.base_url_needed and before.base_url != after.base_url:
            return "GOOGLE_GEMINI_BASE_URL"
        return None
