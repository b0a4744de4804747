"""Opens a store by its URL."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote_to_bytes, urlsplit

from llm_router.domain.clock import Clock
from llm_router.errors import ConfigError, StoreError
from llm_router.stores.base import RateLimitStore
from llm_router.stores.memory import MemoryStore

__all__ = [
    "default_store_url",
    "file_problem",
    "is_memory",
    "open_store",
    "prepare_file",
    "sqlite_path",
    "state_directory",
]

# The adapters are imported when they are opened, since few programs need both sqlite3 and redis.
# No message shows a URL, since any part of a wrong one may be a password.

_Opener = Callable[[str, SplitResult, Clock | None], RateLimitStore]

_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
"""Options of a Redis URL that name a file."""

_NUMBERS = ("timeout", "interval", "connections")
"""Endings of the options of a Redis URL that are numbers."""


def _memory(url: str, _parts: SplitResult, clock: Clock | None) -> RateLimitStore:
    if url.partition("://")[2]:
        raise ConfigError("memory:// takes nothing after it: its state is in the memory of this process")
    return MemoryStore(clock=clock)


def _sqlite(_url: str, parts: SplitResult, clock: Clock | None) -> RateLimitStore:
    from llm_router.stores.sqlite import SQLiteStore  # noqa: PLC0415

    return SQLiteStore(_file(parts), clock=clock)


def _file(parts: SplitResult) -> str:
    """Return the path in the URL of an SQLite store."""
    path = os.fsdecode(unquote_to_bytes(parts.path.removeprefix("/")))
    if parts.query or parts.fragment:
        raise ConfigError("the URL of the SQLite store has options: in a path, write ? as %3F and # as %23")
    if parts.netloc or not path or path.endswith("/") or "\0" in path:
        raise ConfigError(
            "the URL of the SQLite store names no file: write sqlite:///relative/path or "
            "sqlite:////absolute/path"
        )
    if path == ":memory:":
        raise ConfigError("the SQLite store is always a file: write memory:// for the memory of this process")
    if path.startswith("~"):
        raise ConfigError("the URL of the SQLite store begins with ~, which is not expanded: write it out")
    if os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir() it never raises
        raise ConfigError(f"the URL of the SQLite store names a directory, {path!r}: name a file in it")
    return path


def _redis(url: str, parts: SplitResult, clock: Clock | None) -> RateLimitStore:
    from llm_router.stores.redis import RedisStore  # noqa: PLC0415

    host = parts.hostname or ""
    if parts.scheme == "unix":
        if host or not parts.path.strip("/"):
            raise ConfigError("the URL of the Redis store names no socket: write unix:///path/of/the/socket")
    elif not host or " " in host:
        raise ConfigError(f"the URL of the Redis store names no host: write {parts.scheme}://host:6379")
    elif parts.port == 0:
        raise ConfigError("the port in the URL of the Redis store must be from 1 to 65535")
    if parts.fragment or any("=" not in option for option in parts.query.split("&") if option):
        raise ConfigError(
            "the URL of the Redis store is cut by a ? or a #: in a password, write %3F and %23 instead"
        )
    for name, value in parse_qsl(parts.query):
        if name in _FILES and not os.path.exists(value):  # noqa: PTH110 - likewise
            raise ConfigError(f"{name} in the URL of the Redis store names no file: correct its path")
        if name.endswith(_NUMBERS) and not _is_sensible(value):
            raise ConfigError(f"{name} in the URL of the Redis store must be a finite number of 0 or more")
    return RedisStore(url, clock=clock)


def _is_sensible(value: str) -> bool:
    """Return whether a text is a finite number of 0 or more, or not a number at all."""
    try:
        return 0 <= float(value) < math.inf
    except ValueError:
        return True


_SCHEMES: dict[str, _Opener] = {
    "memory": _memory,
    "redis": _redis,
    "redis+cluster": _redis,
    "rediss": _redis,
    "rediss+cluster": _redis,
    "sqlite": _sqlite,
    "unix": _redis,
}


def open_store(url: str, *, clock: Clock | None = None) -> RateLimitStore:
    """Open the store that ``url`` names. It connects when it is first used.

    Args:
        url: ``memory://``, ``sqlite:///relative/path``, ``sqlite:////absolute/path``,
            ``redis://[user:password@]host[:port][/database]``, ``rediss://…`` (TLS), ``redis+cluster://…``,
            ``rediss+cluster://…`` or ``unix:///path/of/the/socket``; for Redis also with ``?shards=n``. Other
            characters than letters, digits and ``-._~`` of a path or a password are percent-encoded.
        clock: The source of time; by default the store's own choice (Redis: the clock of its server).

    Raises:
        ConfigError: The scheme of the URL is unknown, or the URL is incomplete or wrong.
    """
    opener, parts = _read(url)
    return opener(url, parts, clock)


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite store as its URL names it, or None if it is another store's URL.

    Raises:
        ConfigError: As for :func:`open_store`.
    """
    opener, parts = _read(url)
    return Path(_file(parts)) if opener is _sqlite else None


def is_memory(url: str) -> bool:
    """Return whether a URL names the memory of this process.

    Raises:
        ConfigError: As for :func:`open_store`.
    """
    return _read(url)[0] is _memory


def file_problem(url: str) -> str | None:
    """Return why the file of an SQLite store cannot be written; None if it can, or if the store has no file.

    It creates and changes nothing.

    Raises:
        ConfigError: As for :func:`open_store`.
    """
    path = sqlite_path(url)
    if path is None:
        return None
    path = path.absolute()
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK):  # noqa: PTH110 - never raises
        return f"{str(path)!r} cannot be read and written"
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    if not os.path.isdir(folder):  # noqa: PTH112 - likewise
        return f"{str(folder)!r} is not a directory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the directory {str(folder)!r} cannot be written"
    return None


def prepare_file(url: str) -> str | None:
    """Make the directory of an SQLite store's file; return why it cannot be used, as :func:`file_problem`.

    What permissions allow may fail in the doing: on an odd or full disk, or for a name that is too long. Must
    not be called while this process has the file open.

    Raises:
        ConfigError: As for :func:`open_store`.
    """
    problem, path = file_problem(url), sqlite_path(url)
    if problem is not None or path is None:
        return problem
    from llm_router.stores.sqlite.database import check_header  # noqa: PLC0415

    path = path.absolute()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"the directory {str(path.parent)!r} cannot be made: {error.strerror}"
    try:
        check_header(path)
        if not os.path.lexists(path):
            tempfile.TemporaryFile(dir=path.parent).close()  # the file itself is for the store to make
    except StoreError as error:
        return str(error)
    except OSError as error:
        return f"no file {path.name!r} can be made in {str(path.parent)!r}: {error.strerror}"
    return None


def _read(url: str) -> tuple[_Opener, SplitResult]:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is not a number raises here
    except ValueError:
        parts = None
    if parts is None or not url.isprintable():
        raise ConfigError(
            "the URL of the store cannot be read: it needs a host, a port that is a number from 1 to 65535, "
            "and special characters written as %XX"
        )
    opener = _SCHEMES.get(parts.scheme)
    if opener is not None and "://" not in url:
        raise ConfigError(f"the URL of the store lacks the slashes: write {parts.scheme}://…")
    if opener is None:
        raise ConfigError(
            f"no store has the URL scheme {parts.scheme!r}: use one of "
            f"{', '.join(f'{known}://' for known in sorted(_SCHEMES))}"
        )
    return opener, parts


def default_store_url() -> str:
    """Return the URL of the file in which all programs of this user share their quotas.

    Raises:
        ConfigError: As for :func:`state_directory`.
    """
    path = state_directory("LLM_ROUTER_STORE to the URL of a store") / "state.sqlite3"
    return f"sqlite:///{quote(os.fsencode(path.as_posix()))}"


def state_directory(instead: str) -> Path:
    """Return where programs of this user keep what outlives them.

    Args:
        instead: What may be set if there is no such directory.

    Raises:
        ConfigError: The user has no home directory, as in some containers.
    """
    import platformdirs  # noqa: PLC0415

    try:
        path = platformdirs.user_state_path("llm_router")
    except RuntimeError:
        path = Path()
    if not path.is_absolute():
        raise ConfigError(
            f"this user has no home directory to keep state in: set HOME or XDG_STATE_HOME, or {instead}"
        )
    return path
