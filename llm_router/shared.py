"""The router that the parts of one process share, made from the environment on first use."""

from __future__ import annotations

import os

from llm_router.engine.keys import KeyManager
from llm_router.router import Router
from llm_router.stores.urls import default_store_url

__all__ = ["get_key_manager", "get_request_router"]

_shared: tuple[int, Router] | None = None


def get_request_router() -> Router:
    """Return this process's shared router, made from keys.json, ``.env`` and the environment.

    ``LLM_ROUTER_KEYS`` names another keys file. Without ``LLM_ROUTER_STORE`` and ``REDIS_URL`` the state is
    kept in an SQLite file in the user's state directory, so that daily counts survive a restart and the
    programs of one machine share their quotas. After a fork the child gets a router of its own; after the
    router was closed the next call makes a new one.

    Raises:
        ConfigError: Something is wrong; the message names the file, the entry and the remedy.
    """
    global _shared  # noqa: PLW0603 - «the process's shared instance» is what this module is about
    if _shared is None or _shared[0] != os.getpid() or _shared[1].closed:
        from llm_router.config import load_settings  # noqa: PLC0415 - as in the router

        settings = load_settings(os.environ.get("LLM_ROUTER_KEYS", "keys.json"))
        store = settings.store_url or default_store_url()
        _shared = (os.getpid(), Router.from_settings(settings, store=store))
    return _shared[1]


def get_key_manager() -> KeyManager:
    """Return the key manager of this process's shared router.

    Raises:
        ConfigError: As for :func:`get_request_router`.
    """
    return get_request_router().keys
