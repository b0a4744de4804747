"""The default routers of a process: one for each event loop, made from the environment on first use."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_router.conversations.base import Turn
from llm_router.conversations.memory import MemoryHistory
from llm_router.domain.deployment import Deployment
from llm_router.domain.reload import ReloadReport
from llm_router.engine.keys import KeyManager
from llm_router.errors import RouterLoopError
from llm_router.router import Router
from llm_router.stores.failover import LOCAL_SHARE, FailoverStore
from llm_router.stores.memory import MemoryStore
from llm_router.stores.urls import default_store_url, file_problem, open_store

if TYPE_CHECKING:
    from llm_router.config import ConfigSource, Settings

__all__ = ["get_key_manager", "get_request_router"]

_log = logging.getLogger("llm_router")


def get_request_router() -> Router:
    """Return the default router of the running event loop, made from keys.json, ``.env`` and the environment.

    ``LLM_ROUTER_KEYS`` names another keys file. Without ``LLM_ROUTER_STORE`` and ``REDIS_URL`` the state is
    kept in an SQLite file in the user's state directory, so that daily counts survive a restart and the
    programs of one machine share their quotas. Conversations, and which project a file belongs to, are kept
    beside it, or in memory if that file cannot be written.

    Each event loop has its own router; all of a process share the quotas and the conversations. So where
    threads run loops of their own, call this in each. Without a running loop it returns a router for the loop
    that uses it first. The router of a closed loop is dropped. After a router was closed, the next call reads
    the configuration again; ``reload()`` of each router does so without. After a fork the child gets its own
    routers.

    Raises:
        ConfigError: Something is wrong; the message names the file, the entry and the remedy.
        RouterLoopError: The store is ``memory://``, and another event loop that is still open uses it.
    """
    global _default  # noqa: PLW0603 - one instance per process is what this module is about
    defaults = _default
    if defaults is None:
        with _lock:
            defaults = _default = _default or _Defaults()
    return defaults.router(_running_loop())


def get_key_manager() -> KeyManager:
    """Return the key manager of the router that :func:`get_request_router` returns.

    Raises:
        ConfigError: As for :func:`get_request_router`.
        RouterLoopError: As for :func:`get_request_router`.
    """
    return get_request_router().keys


_Loop = asyncio.AbstractEventLoop | None
_Store = MemoryStore | FailoverStore


class _DefaultRouter(Router):
    """A router that closes the store that was opened for it, and whose reload is for later ones as well."""

    opened: _Store
    defaults: weakref.ref[_Defaults]

    async def reload(
        self,
        deployments: Iterable[Deployment] | None = None,
        *,
        inactive: Iterable[Deployment] | None = None,
        workloads: Sequence[str] | None = None,
    ) -> ReloadReport:
        """Reload; routers that are made for other loops later go by the same files."""
        report = await super().reload(deployments, inactive=inactive, workloads=workloads)
        defaults = self.defaults()
        if defaults is not None and self._origin is not None:
            defaults.settings = self._origin.settings
        return report

    async def aclose(self) -> None:
        """Close the router and its store, and those of routers whose loops are gone. May be called twice."""
        await super().aclose()
        await self.opened.aclose()
        defaults = self.defaults()
        if defaults is not None:
            await defaults.close_idle()


class _Defaults:
    """The default routers of a process, and what they share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routers: dict[_Loop, _DefaultRouter] = {}  # under None: the one that no loop has used yet
        self.settings: Settings | None = None
        self._source: ConfigSource | None = None
        self._histories = _SharedHistory()
        self._idle: list[_Store] = []

    def router(self, loop: _Loop) -> Router:
        """Return the router of a loop; for None, one that belongs to the first loop that uses it."""
        router = self._routers.get(loop)
        if router is None or router.closed or (loop is None and router.loop is not None):
            with self._lock:
                self._tidy()
                router = self._routers.get(loop) or self._routers.pop(None, None) or self._make(loop)
                self._routers.setdefault(loop, router)
        return router

    async def close_idle(self) -> None:
        """Close the stores of the routers whose loops are closed; one that is made later opens its own."""
        with self._lock:
            gone = [loop for loop in self._routers if loop is not None and loop.is_closed()]
            idle, self._idle = self._idle + [self._routers.pop(loop).opened for loop in gone], []
        for store in idle:
            await store.aclose()

    def _tidy(self) -> None:
        """Give the waiting router to the loop that used it; drop closed ones and those of closed loops."""
        waiting = self._routers.get(None)
        if waiting is not None and waiting.loop is not None:
            del self._routers[None]
            self._routers.setdefault(waiting.loop, waiting)
        for loop, router in list(self._routers.items()):
            if router.closed:
                del self._routers[loop]
                self.settings = None
                self._idle.clear()
            elif loop is not None and loop.is_closed():
                del self._routers[loop]
                self._idle.append(router.opened)
        if self.settings is None and not self._routers:
            self._histories = _SharedHistory()

    def _make(self, loop: _Loop) -> _DefaultRouter:
        from llm_router.config import ConfigSource  # noqa: PLC0415 - as in the router

        if self.settings is None:
            self._source = ConfigSource(Path(os.environ.get("LLM_ROUTER_KEYS", "keys.json")))
            self.settings = self._source.load()
        url = self.settings.store_url or default_store_url()
        in_memory = url.startswith("memory:")
        if in_memory and self._routers:
            if loop is None:
                return next(iter(self._routers.values()))
            raise RouterLoopError(
                "memory:// cannot be shared by event loops, and another one that is still open uses it: set "
                "LLM_ROUTER_STORE to a file (sqlite:////path/state.sqlite3) or a server (redis://host:6379)"
            )
        # The store of a dropped router has its connections, and knows what was spent while it failed.
        store = self._idle.pop() if self._idle else self._open(url, in_memory=in_memory)
        router = _DefaultRouter.from_settings(
            self.settings,
            source=self._source,
            store=store,
            records=url,
            histories=self._histories if in_memory or self._warns_of_file(url) else url,
        )
        router.opened, router.defaults = store, weakref.ref(self)
        return router

    def _warns_of_file(self, url: str) -> bool:
        """Return whether the file of an SQLite store cannot be used, as in a container that is read-only."""
        problem = file_problem(url)
        if problem is not None and not self._routers:
            _log.warning("conversations are kept in the memory of this process: %s", problem)
        return problem is not None

    def _open(self, url: str, *, in_memory: bool) -> _Store:
        if in_memory:
            return MemoryStore()
        # While a store never answered, all loops that are open at the same time take less than two shares.
        share = LOCAL_SHARE / 2 ** min(len(self._routers), 10)
        return FailoverStore(open_store(url), first_share=share)


class _SharedHistory:
    """The conversations of all default routers: a :class:`MemoryHistory` for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._history = MemoryHistory()  # which never suspends

    async def load(self, conversation_id: str) -> tuple[Turn, ...]:
        """Return the turns of a conversation, oldest first."""
        with self._lock:
            return await self._history.load(conversation_id)

    async def save(self, conversation_id: str, turns: tuple[Turn, ...]) -> None:
        """Replace the turns of a conversation."""
        with self._lock:
            await self._history.save(conversation_id, turns)

    async def delete(self, conversation_id: str) -> None:
        """Forget a conversation."""
        with self._lock:
            await self._history.delete(conversation_id)


def _running_loop() -> _Loop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_lock = threading.Lock()
_default: _Defaults | None = None
_inherited: list[_Defaults | None] = []


def _after_fork() -> None:
    """Start again in the child; keep what is the parent's, since closing it would disturb the parent."""
    global _default, _lock
    _inherited.append(_default)
    _default, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
