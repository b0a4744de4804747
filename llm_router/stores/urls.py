"""Opens a store by its URL."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from llm_router.domain.clock import Clock
from llm_router.errors import ConfigError
from llm_router.stores.base import RateLimitStore
from llm_router.stores.memory import MemoryStore

__all__ = ["default_store_url", "open_store"]

# The adapters are imported when they are opened, since few programs need both sqlite3 and redis.


def _memory(_url: str, clock: Clock | None) -> RateLimitStore:
    return MemoryStore(clock=clock)


def _sqlite(url: str, clock: Clock | None) -> RateLimitStore:
    from llm_router.stores.sqlite import SQLiteStore  # noqa: PLC0415

    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or len(path) < 2:  # noqa: PLR2004 - "/" alone names no file
        raise ConfigError(f"{url!r} names no file: write sqlite:///relative/path or sqlite:////absolute/path")
    return SQLiteStore(path[1:], clock=clock)


def _redis(url: str, clock: Clock | None) -> RateLimitStore:
    from llm_router.stores.redis import RedisStore  # noqa: PLC0415

    return RedisStore(url, clock=clock)


_SCHEMES: dict[str, Callable[[str, Clock | None], RateLimitStore]] = {
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
            ``rediss+cluster://…`` or ``unix:///path/of/the/socket``; for Redis also with ``?shards=n``.
        clock: The source of time; by default the store's own choice (Redis: the clock of its server).

    Raises:
        ConfigError: The scheme of the URL is unknown, or the URL is incomplete.
    """
    scheme = urlsplit(url).scheme
    opener = _SCHEMES.get(scheme)
    if opener is None:
        # Only the scheme is shown, since the URL may hold a password.
        raise ConfigError(
            f"no store has the URL scheme {scheme!r}: use one of "
            f"{', '.join(f'{known}://' for known in sorted(_SCHEMES))}"
        )
    return opener(url, clock)


def default_store_url() -> str:
    """Return the URL of the file in which all programs of this user share their quotas."""
    import platformdirs  # noqa: PLC0415

    folder = platformdirs.user_state_path("llm_router")
    return f"sqlite:///{folder / 'state.sqlite3'}"
