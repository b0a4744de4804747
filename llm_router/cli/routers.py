"""The router of a command: state that outlives it, unless told otherwise."""

from __future__ import annotations

from llm_router.config import Settings
from llm_router.router import Router
from llm_router.stores.urls import default_store_url

__all__ = ["open_router"]


def open_router(settings: Settings, store: str | None) -> Router:
    """Make a router from settings.

    Without ``store`` and without one in the environment the state is in the user's own file, so that the
    commands of a day share their quotas.
    """
    return Router.from_settings(settings, store=store or settings.store_url or default_store_url())
