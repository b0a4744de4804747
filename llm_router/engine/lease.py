"""A reservation in use: the one place that decides what becomes of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from llm_router.domain.quota import TOKEN_METRICS, Demand
from llm_router.engine.launch import LaunchPad
from llm_router.engine.pool import Slot
from llm_router.engine.timing import finish
from llm_router.errors import StoreError
from llm_router.stores.base import RateLimitStore

__all__ = ["Lease", "new_reservation_id"]

_log = logging.getLogger("llm_router")

_NOTHING = Demand(0, 0)


class Lease:
    """Quota held for one request; an async context manager.

    On leaving the block, however that comes about, what was reserved is settled with what :meth:`used`
    was told, at the estimate if the request was sent and nothing is known, or released if it was not sent.

    Args:
        store: Who keeps the reservation.
        reservation_id: Its id.
        slot: The deployment it is on.
        demand: What was reserved.
        pad: Where it stands until it is launched.
        on_return: Called with the slot when quota came back before its time.
    """

    __slots__ = ("_fate", "_on_return", "_pad", "_store", "demand", "reservation_id", "slot")

    def __init__(
        self,
        store: RateLimitStore,
        reservation_id: str,
        slot: Slot,
        demand: Demand,
        pad: LaunchPad,
        on_return: Callable[[Slot], None],
    ) -> None:
        self._store = store
        self._on_return = on_return
        self._pad: LaunchPad | None = pad
        self._fate = _NOTHING
        self.reservation_id = reservation_id
        self.slot = slot
        self.demand = demand

    def sending(self) -> None:
        """Say that the request goes out now: from here on its quota may be used."""
        self._fate = self.demand

    def launched(self) -> None:
        """Say that the request is on its way: the next one may start. Harmless when said again."""
        pad, self._pad = self._pad, None
        if pad is not None:
            pad.leave()

    def not_sent(self) -> None:
        """Say that nothing reached the provider after all."""
        self._fate = _NOTHING

    def used(self, tokens: int) -> None:
        """Say how many input tokens the provider counted."""
        demand = self.demand
        self._fate = demand if tokens == demand.tokens else Demand(demand.requests, tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.launched()
        try:
            await self._close()
        except asyncio.CancelledError:
            # Closing is idempotent: once more, and this time to the end.
            with suppress(StoreError):
                await finish(self._close())
            raise
        except StoreError as error:
            # What was taken stays taken, and the reservation expires by itself.
            _log.debug("a reservation could not be settled: %s", error)
        if self._returns_something():
            self._on_return(self.slot)

    def _close(self) -> Coroutine[Any, Any, None]:
        if self._fate is _NOTHING:
            return self._store.release(self.reservation_id)
        return self._store.settle(self.reservation_id, self._fate)

    def _returns_something(self) -> bool:
        """Whether the slot may have room before the time it is parked until."""
        if self._fate is _NOTHING:
            return True
        refusal = self.slot.refusal
        fewer_tokens = self._fate.tokens < self.demand.tokens
        return fewer_tokens and refusal is not None and refusal.reason in TOKEN_METRICS


_counter = itertools.count()
_prefix = secrets.token_hex(6)


def new_reservation_id() -> str:
    """Return an id that no other reservation of any process has."""
    return f"{_prefix}{next(_counter):x}"


def _after_fork() -> None:
    global _prefix  # noqa: PLW0603 - the child must not go on with its parent's ids
    _prefix = secrets.token_hex(6)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
