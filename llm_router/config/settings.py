"""The settings of a router, loaded and checked as a whole."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from llm_router.config.assembly import Assembly
from llm_router.config.environment import Environ, read_environment
from llm_router.config.findings import Finding, Report
from llm_router.config.keyfile import read_keyfile
from llm_router.config.redaction import Redactor, mask_url
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import GUARD
from llm_router.errors import ConfigError

__all__ = ["Settings", "check_settings", "load_settings"]

_log = logging.getLogger("llm_router")


def _shown(url: str | None) -> str:
    return repr(url and mask_url(url))


@attrs.frozen
class Settings:
    """What keys.json, ``.env`` and the environment say.

    Attributes:
        deployments: What to send through, in the order of the file; at least one. Only those of the first
            active key when ``LLM_MULTI_KEY_ROUTER_ENABLED`` is false.
        inactive: The others; their secret is empty where the environment has none.
        workloads: From lightest to heaviest.
        max_retries: Further attempts after the first.
        base_backoff: Upper bound of the first backoff, in seconds.
        max_wait: Seconds that a send waits for capacity.
        store_url: The store to open; None for the memory of the process.
        base_url: Another server for the Gemini API; None for Google's.
        warnings: What is odd, and works.
    """

    deployments: tuple[Deployment, ...]
    inactive: tuple[Deployment, ...] = ()
    workloads: tuple[str, ...] = ("light", "medium", "heavy")
    max_retries: int = 3
    base_backoff: float = 0.5
    max_wait: float = 0.0
    store_url: str | None = attrs.field(default=None, repr=_shown)
    base_url: str | None = attrs.field(default=None, repr=_shown)
    warnings: tuple[str, ...] = ()


def load_settings(
    path: str | os.PathLike[str] = "keys.json",
    *,
    env: Mapping[str, str] | None = None,
    env_file: str | os.PathLike[str] | None = ".env",
    guard: float = GUARD,
    secrets_required: bool = True,
    providers: Collection[str] = ("gemini",),
) -> Settings:
    """Load the settings; each warning is also logged once, by the logger ``llm_router``.

    Args:
        path: The keys file; its format is told in :mod:`llm_router.config.keyfile`.
        env: The environment; ``os.environ`` by default. It is never changed.
        env_file: A file of variables behind the environment, looked up beside the keys file, then in the
            working directory; None for none. A file of another name than ``.env`` must exist.
        guard: Seconds added to the windows of quotas.
        secrets_required: Whether a key in use without a secret is an error; its secret is empty if not.
        providers: The known providers.

    Raises:
        ConfigError: Something is wrong; the message names file, entry, field and remedy of every problem (the
            first ten of many), and never a secret.
    """
    # From here on no frame holds an environment that a traceback with locals would print.
    env = Environ(os.environ if env is None else env)
    settings, report = _load(Path(path), env, env_file, guard, providers, secrets_required=secrets_required)
    report.raise_errors()
    if settings is None:  # pragma: no cover - nothing to load is always an error
        raise ConfigError(f"{os.fspath(path)}: holds no settings")
    for warning in settings.warnings:
        _log.warning("%s", warning)
    return settings


def check_settings(
    path: str | os.PathLike[str] = "keys.json",
    *,
    env: Mapping[str, str] | None = None,
    env_file: str | os.PathLike[str] | None = ".env",
    secrets_required: bool = True,
    providers: Collection[str] = ("gemini",),
) -> tuple[Finding, ...]:
    """Return every problem and warning that :func:`load_settings` would meet; raise and log nothing.

    Args:
        path: As for :func:`load_settings`.
        env: As for :func:`load_settings`.
        env_file: As for :func:`load_settings`.
        secrets_required: As for :func:`load_settings`.
        providers: As for :func:`load_settings`.
    """
    env = Environ(os.environ if env is None else env)
    return _load(Path(path), env, env_file, GUARD, providers, secrets_required=secrets_required)[1].findings


def _load(
    path: Path,
    env: Environ,
    env_file: str | os.PathLike[str] | None,
    guard: float,
    providers: Collection[str],
    *,
    secrets_required: bool,
) -> tuple[Settings | None, Report]:
    if not 0 <= guard < math.inf:
        raise ConfigError(f"guard must be 0 s or more, not {guard!r}")
    report = Report()
    environment = read_environment(env, env_file, path.parent, report)
    report.redactor = Redactor(environment.secrets())
    switches = environment.switches()
    file = read_keyfile(path, report, providers)
    if file is None:
        return None, report
    assembly = Assembly(file, environment, report, guard, secrets_required, switches.enabled)
    active, inactive = assembly.deployments()
    warnings = tuple(map(str, report.warnings))
    settings = Settings(
        active,
        inactive,
        file.workloads,
        switches.max_retries,
        switches.base_backoff,
        switches.max_wait,
        switches.store_url,
        switches.base_url,
        warnings,
    )
    return settings, report
