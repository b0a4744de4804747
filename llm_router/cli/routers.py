"""The router of a command, whose state outlives the command by default."""

from __future__ import annotations

from llm_router.config import Settings
from llm_router.router import Router
from llm_router.stores.urls import default_store_url

__all__ = ["open_router"]


def open_router(settings: Settings, store: str | None) -> Router:
    """Return a router with these settings.

    If neither ``store`` nor the environment names a store, the state is kept in a file of the user, so that
    all commands share their quotas.
    """
    return Router.from_settings(settings, store=store or settings.store_url or default_store_url())
