"""The router of a command, whose state outlives the command by default."""

from __future__ import annotations

from collections.abc import Iterable

from llm_router.config import Settings
from llm_router.errors import ConfigError
from llm_router.observe.base import RouterObserver
from llm_router.router import Router
from llm_router.stores.failover import StoreFailurePolicy
from llm_router.stores.urls import default_store_url, prepare_file

__all__ = ["choose_shared_store", "choose_store", "open_router"]


def choose_store(settings: Settings, store: str | None) -> str:
    """Return the URL of the store to use.

    If neither ``store`` nor the environment names one, the state is kept in a file of the user, so that all
    commands share their quotas.

    Raises:
        ConfigError: The file of the store cannot be written, so each command would count from 0.
    """
    url = store or settings.store_url or default_store_url()
    problem = prepare_file(url)
    if problem is not None:
        raise ConfigError(
            f"the commands cannot share their quotas: {problem}: set LLM_ROUTER_STORE, or --store, to the "
            "URL of a store that can be written, such as sqlite:////path/of/state.sqlite3"
        )
    return url


def choose_shared_store(settings: Settings, store: str | None) -> str:
    """Return the URL of the store to change, as :func:`choose_store` does.

    Raises:
        ConfigError: As there; or it is the memory of this process, which ends with it.
    """
    url = choose_store(settings, store)
    if url.startswith("memory:"):
        raise ConfigError(
            "memory:// is the memory of this command, which no other process would notice: set "
            "LLM_ROUTER_STORE, or --store, to the URL of the store that your programs use"
        )
    return url


def open_router(
    settings: Settings,
    store: str | None,
    *,
    on_store_failure: StoreFailurePolicy = "closed",
    observers: Iterable[RouterObserver] = (),
) -> Router:
    """Return a router with these settings, on the store that :func:`choose_store` returns.

    By default nothing is sent while the store fails: with ``"local"`` each command would take a new share.
    """
    url = choose_store(settings, store)
    return Router.from_settings(settings, store=url, on_store_failure=on_store_failure, observers=observers)
