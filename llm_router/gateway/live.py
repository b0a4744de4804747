"""What the page shows, made once a second however many look at it, and not at all while none does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from llm_router.domain.clock import monotonic, sleep
from llm_router.engine.project_limits import known_by_project, projects_of
from llm_router.engine.statuses import count_unusable, describe
from llm_router.errors import StoreError
from llm_router.gemini_http.framing import dump
from llm_router.stores.base import FrontingStore, innermost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_router.domain.status import KeyStatus
    from llm_router.engine.keys import KeyManager
    from llm_router.gateway.activity import Activity
    from llm_router.stores.base import DeploymentSnapshot

__all__ = ["INTERVAL", "LiveView", "TooManyViewersError", "Viewer"]

_log = logging.getLogger("llm_router")

INTERVAL = 1.0
"""Seconds from one frame to the next, at least."""

_SHARE = 20
"""What making a frame took is rested for so many times: a large pool must not keep the loop busy."""

_MOST_VIEWERS = 32
_MOST_ROWS = 500
"""Most deployments in a frame; those that cannot be used come first if there are more."""

_OF_LIMITS = frozenset({"used", "limit", "configured", "source", "resets_in", "counted_since", "full_until"})
_OF_STATUSES = frozenset(
    {"key_id", "provider", "project", "model", "workload", "active", "reason", "spent", "room_in"}
    | {"state", "usable_in_seconds", "in_cooldown", "quarantined", "disabled", "cooldown_remaining"}
)


class TooManyViewersError(Exception):
    """There are as many viewers as there may be."""


class LiveView:
    """Makes frames for viewers: the state of every key as JSON, and the activity of this process.

    Args:
        keys: Where the statuses come from.
        activity: What has happened.
    """

    def __init__(self, keys: KeyManager, activity: Activity) -> None:
        self._keys = keys
        self._activity = activity
        self._monotonic = monotonic(keys.clock)
        self._viewers: set[Viewer] = set()
        self._producer: asyncio.Task[None] | None = None
        self._due = -INTERVAL

    @contextlib.asynccontextmanager
    async def watch(self) -> AsyncIterator[Viewer]:
        """Provide a viewer, an iterator of frames; one that is slow gets only the latest.

        Raises:
            TooManyViewersError: There are as many as there may be.
        """
        if len(self._viewers) >= _MOST_VIEWERS:
            raise TooManyViewersError
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            if self._producer is None:
                self._producer = asyncio.create_task(self._produce())
            yield viewer
        finally:
            self._viewers.discard(viewer)
            if not self._viewers and self._producer is not None:
                producer, self._producer = self._producer, None
                producer.cancel()
                await asyncio.gather(producer, return_exceptions=True)

    async def frame(self) -> dict[str, Any]:
        """Return what there is to show now."""
        now = self._keys.clock.time()
        found: dict[str, Any] = {
            "at": now,
            "process": self._activity.worker,
            "waiting": self._keys.selector.waiting,
            "line": self._activity.line(now),
            "rates": self._activity.rates(now),
            "decisions": self._activity.decisions(),
        }
        return found | await self._pool(now)

    async def _pool(self, now: float) -> dict[str, Any]:
        """Return the state of the pool; only why there is none, while the store fails."""
        keys = self._keys
        trouble = keys.store.trouble if isinstance(keys.store, FrontingStore) else None
        found: dict[str, Any] = {"store": type(innermost(keys.store)).__name__, "trouble": trouble}
        try:
            deployments = [*keys.pool.states, *keys.inactive]
            read = await keys.store.snapshot([*deployments, *projects_of(deployments, keys.pool)])
        except StoreError as error:
            return found | {"trouble": str(error)}
        snapshots, shared = read[: len(deployments)], known_by_project(read[len(deployments) :])
        states, pacer = keys.pool.states, keys.selector.pacer
        statuses = [
            describe(
                each,
                states.get(each.deployment),
                now,
                of_project=shared.get(each.deployment.project_scope, ()),
                pacer=pacer,
            )
            for each in snapshots
        ]
        rows = list(zip(snapshots, statuses, strict=True))
        if len(rows) > _MOST_ROWS:
            rows.sort(key=lambda row: row[1]["state"] == "ready" or not row[1]["active"])
        return found | {
            "keys": [_row(*row) for row in rows[:_MOST_ROWS]],
            "not_shown": max(len(rows) - _MOST_ROWS, 0),
            "counts": _counts(statuses),
        }

    async def _produce(self) -> None:
        try:
            await self._show_frames()
        except Exception as error:  # noqa: BLE001 - whoever looks must not be left with what is old
            _log.error("the page failed: %s", type(error).__name__)
            self._producer = None
            for viewer in self._viewers:
                viewer.leave()

    async def _show_frames(self) -> None:
        while True:
            await sleep(self._keys.clock, max(self._due - self._monotonic(), 0.0))
            began = self._monotonic()
            frame = dump(await self.frame())
            self._due = began + max(INTERVAL, _SHARE * (self._monotonic() - began))
            for viewer in self._viewers:
                viewer.show(frame)


class Viewer:
    """One who looks: an async iterator of frames."""

    def __init__(self) -> None:
        self._frame: bytes | None = None
        self._news = asyncio.Event()
        self._is_over = False

    def show(self, frame: bytes) -> None:
        """Have this frame read next, in place of one that was not read yet."""
        self._frame = frame
        self._news.set()

    def leave(self) -> None:
        """End the iteration."""
        self._is_over = True
        self._news.set()

    def __aiter__(self) -> Viewer:
        return self

    async def __anext__(self) -> bytes:
        await self._news.wait()
        self._news.clear()
        if self._is_over or self._frame is None:
            raise StopAsyncIteration
        return self._frame


def _counts(statuses: list[KeyStatus]) -> dict[str, int]:
    active = {(each["provider"], each["key_id"]) for each in statuses if each["active"]}
    counts = Counter(count_unusable(statuses))
    return {"active": len(active), "usable": len(active) - counts.total(), **counts}


def _row(snapshot: DeploymentSnapshot, status: KeyStatus) -> dict[str, Any]:
    limits: dict[str, Any] = {
        metric: {name: value for name, value in limit.items() if name in _OF_LIMITS}
        for metric, limit in status["limits"].items()
    }
    row: dict[str, Any] = {name: value for name, value in status.items() if name in _OF_STATUSES}
    scope = "" if snapshot.cooldown is None else snapshot.cooldown.scope.partition(":")[0]
    return row | {"limits": limits, "scope": scope}
