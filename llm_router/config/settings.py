"""The settings of a router, loaded and checked together."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

from llm_router.config.advice import advise
from llm_router.config.assembly import Assembly
from llm_router.config.environment import Environ, read_environment
from llm_router.config.findings import Finding, Report
from llm_router.config.keyfile import read_keyfile
from llm_router.config.redaction import Redactor, mask_url
from llm_router.domain.deployment import Deployment
from llm_router.domain.numbers import real, shown
from llm_router.domain.quota import GUARD, MAX_GUARD
from llm_router.errors import ConfigError
from llm_router.stores.urls import file_problem

__all__ = ["Settings", "check_settings", "examine", "load_settings"]

_log = logging.getLogger("llm_router")


def _shown(url: str | None) -> str:
    return repr(url and mask_url(url))


@attrs.frozen
class Settings:
    """The settings from keys.json, ``.env`` and the environment.

    Attributes:
        deployments: The deployments to use, in the order of the file; at least one. If
            ``LLM_MULTI_KEY_ROUTER_ENABLED`` is false, only those of the first active key.
        inactive: The other deployments; a secret that is not set is empty.
        workloads: The workloads, from lightest to heaviest.
        max_retries: Most attempts after the first one.
        base_backoff: Upper bound of the first backoff, in seconds.
        max_wait: Most seconds that a send waits for quota.
        store_url: The URL of the store to open; None for the memory of the process.
        base_url: The base URL of another server for the Gemini API; None for Google's.
        warnings: Things that work but are probably mistakes, in words.
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
    store_needed: bool = True,
    providers: Collection[str] = ("gemini",),
) -> Settings:
    """Load the settings, and log each warning once with the logger ``llm_router``.

    Args:
        path: The keys file; :mod:`llm_router.config.keyfile` describes its format.
        env: The environment; ``os.environ`` by default. It is never changed.
        env_file: A file of variables that the environment overrides, looked up beside the keys file, then in
            the working directory; None for no file. A file not named ``.env`` must exist.
        guard: Seconds added to the window of each quota.
        secrets_required: Whether a missing secret of a key in use is an error; if not, the secret is empty.
        store_needed: Whether the store that the environment names is used; if not, it is not checked.
        providers: The names of the known providers.

    Raises:
        ConfigError: The configuration has errors. The message gives the file, entry, field and remedy of each
            (of the first ten), and never a secret.
    """
    # From here on, no frame refers to an environment that a traceback with locals would print.
    env = Environ(os.environ if env is None else env)
    settings, report = _load(
        Path(path),
        env,
        env_file,
        guard,
        providers,
        secrets_required=secrets_required,
        store_needed=store_needed,
    )
    report.raise_errors()
    if settings is None:  # pragma: no cover - an unreadable file is always an error
        raise ConfigError(f"{os.fspath(path)}: contains no settings: copy keys.json.example to it")
    for warning in settings.warnings:
        _log.warning("%s", warning)
    return settings


def check_settings(
    path: str | os.PathLike[str] = "keys.json",
    *,
    env: Mapping[str, str] | None = None,
    env_file: str | os.PathLike[str] | None = ".env",
    secrets_required: bool = True,
    default_store: str | None = None,
    providers: Collection[str] = ("gemini",),
) -> tuple[Finding, ...]:
    """Return every problem and warning that :func:`load_settings` would report; log nothing.

    Args:
        path: As for :func:`load_settings`.
        env: As for :func:`load_settings`.
        env_file: As for :func:`load_settings`.
        secrets_required: As for :func:`load_settings`.
        default_store: The URL of the store to use if the environment names none; a file that cannot be
            written is a warning.
        providers: As for :func:`load_settings`.

    Returns:
        The findings, in the order in which they were found.
    """
    return examine(
        path,
        env=Environ(os.environ if env is None else env),
        env_file=env_file,
        secrets_required=secrets_required,
        default_store=default_store,
        providers=providers,
    )[1].findings


def examine(
    path: str | os.PathLike[str],
    *,
    env: Mapping[str, str] | None = None,
    env_file: str | os.PathLike[str] | None = ".env",
    secrets_required: bool = True,
    store_needed: bool = True,
    default_store: str | None = None,
    providers: Collection[str] = ("gemini",),
) -> tuple[Settings | None, Report]:
    """Return the settings, as far as they can be read, and everything that is to be said of them.

    Args:
        path: As for :func:`check_settings`.
        env: As for :func:`check_settings`.
        env_file: As for :func:`check_settings`.
        secrets_required: As for :func:`check_settings`.
        store_needed: As for :func:`load_settings`.
        default_store: As for :func:`check_settings`.
        providers: As for :func:`check_settings`.
    """
    env = Environ(os.environ if env is None else env)
    settings, report = _load(
        Path(path),
        env,
        env_file,
        GUARD,
        providers,
        secrets_required=secrets_required,
        store_needed=store_needed,
        advised=True,
    )
    if settings is not None and settings.store_url is None and default_store is not None:
        problem = file_problem(default_store)
        if problem is not None:
            report.warning("LLM_ROUTER_STORE", f"is not set, and the default cannot be used: {problem}")
    return settings, report


def _load(
    path: Path,
    env: Environ,
    env_file: str | os.PathLike[str] | None,
    guard: float,
    providers: Collection[str],
    *,
    secrets_required: bool,
    store_needed: bool,
    advised: bool = False,
) -> tuple[Settings | None, Report]:
    if not 0 <= real(guard) <= MAX_GUARD:
        raise ConfigError(f"guard must be 0 s or more (at most {MAX_GUARD:.0f} s), not {shown(guard)}")
    report = Report()
    environment = read_environment(env, env_file, path.parent, report)
    report.redactor = Redactor(environment.secrets())
    switches = environment.switches(store_needed=store_needed)
    file = read_keyfile(path, report, providers)
    if file is None:
        return None, report
    assembly = Assembly(file, environment, report, guard, secrets_required, switches.enabled)
    active, inactive = assembly.deployments()
    if advised:
        advise(report, file, environment, (*active, *inactive))
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
