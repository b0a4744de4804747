"""The default router of a process, made from the environment on first use."""

from __future__ import annotations

import os

from llm_router.engine.keys import KeyManager
from llm_router.router import Router
from llm_router.stores.urls import default_store_url

__all__ = ["get_key_manager", "get_request_router"]

_default: tuple[int, Router] | None = None


def get_request_router() -> Router:
    """Return this process's default router, made from keys.json, ``.env`` and the environment.

    ``LLM_ROUTER_KEYS`` names another keys file. Without ``LLM_ROUTER_STORE`` and ``REDIS_URL`` the state is
    kept in an SQLite file in the user's state directory, so that daily counts survive a restart and the
    programs of one machine share their quotas. After a fork the child gets its own router; after the router
    was closed, the next call makes a new one.

    Raises:
        ConfigError: Something is wrong; the message names the file, the entry and the remedy.
    """
    global _default  # noqa: PLW0603 - one instance per process is what this module is about
    if _default is None or _default[0] != os.getpid() or _default[1].closed:
        from llm_router.config import load_settings  # noqa: PLC0415 - as in the router

        settings = load_settings(os.environ.get("LLM_ROUTER_KEYS", "keys.json"))
        store = settings.store_url or default_store_url()
        _default = (os.getpid(), Router.from_settings(settings, store=store))
    return _default[1]


def get_key_manager() -> KeyManager:
    """Return the key manager of this process's default router.

    Raises:
        ConfigError: As for :func:`get_request_router`.
    """
    return get_request_router().keys
