"""The store of one process: everything in dictionaries, nothing survives."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING

from llm_router.domain.calendar import NEVER, microseconds
from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.cooldown import LEARNT_FOR
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.stores.base import Decision, DeploymentSnapshot, Refusal
from llm_router.stores.ledger import (
    Book,
    Shelf,
    latest_cooldown,
    make_ledger,
    terms_in_force,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_router.domain.cooldown import Cooldown
    from llm_router.domain.deployment import Deployment, Scope

__all__ = ["MemoryStore"]

_log = logging.getLogger("llm_router")

_SWEEP_EVERY = 1_000_000
"""Microseconds between two sweeps of what has expired."""

_MOST_SHELVES = 500_000
"""Deployment objects remembered; a router that is reloaded makes new ones. Forgetting them loses no count."""

_NOTHING = Demand(0, 0)


class _Account:
    """What belongs to one (provider, project, model): its books, and what refusals told of its limits."""

    __slots__ = ("books", "learnt")

    def __init__(self) -> None:
        self.books: dict[Metric, Book] = {}
        self.learnt: dict[Metric, tuple[int, int]] = {}  # the limit, and when it ends


_Reservation = tuple[float, int, int, Shelf, list[int]]
"""When it expires, the requests and tokens it asked for, where it took them from, the mark in each book."""


class MemoryStore:
    """Keeps the state of one process in memory.

    No method ever suspends, so each is atomic among the tasks of an event loop; it is not meant for several
    threads. Processes do not see each other's: use SQLite or Redis where several share their keys. A forked
    child that goes on with its parent's store is warned of, once, in the log.

    Args:
        clock: Where time comes from; the machine's by default.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._time = (clock or SystemClock()).time
        self._accounts: dict[Scope, _Account] = {}
        self._shelves: dict[Deployment, Shelf] = {}
        self._cooldowns: dict[Scope, Cooldown] = {}
        self._reservations: dict[str, _Reservation] = {}
        self._sweep_at = 0
        self._process = os.getpid()
        self._version = 0  # rises whenever a limit changes; one for all, since that is rare

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Take ``demand`` from the first candidate with room; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        if now >= self._sweep_at:
            self._sweep(now)
        requests, tokens = demand.requests, demand.tokens
        refusals: tuple[Refusal, ...] = ()
        for deployment in candidates:
            shelf = self._shelves.get(deployment)
            if shelf is None or now >= shelf.valid_until or shelf.version != self._version:
                shelf = self._open(deployment, now)
            cooldown = self._cooldown(deployment, now)
            if cooldown is not None or not shelf.fits(requests, tokens, now):
                refusals += (shelf.refuse(deployment, cooldown, demand, now),)
                continue
            marks, headroom, daily_headroom = shelf.take(requests, tokens, now)
            self._reservations[reservation_id] = now + ttl * 1e6, requests, tokens, shelf, marks
            return Decision(deployment, headroom, daily_headroom, refusals)
        return Decision(None, 0.0, 0.0, refusals)

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Correct a reservation to what was really used; see :class:`RateLimitStore`."""
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is not None:
            _, requests, tokens, _, _ = reservation
            if used.requests != requests or used.tokens != tokens:
                self._correct(reservation, used)

    async def release(self, reservation_id: str) -> None:
        """Give back all that a reservation took; see :class:`RateLimitStore`."""
        await self.settle(reservation_id, _NOTHING)

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Put a scope aside; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        if now >= self._sweep_at:
            self._sweep(now)
        present = self._cooldowns.get(cooldown.scope)
        if cooldown.until == -math.inf:
            self._cooldowns.pop(cooldown.scope, None)
        elif microseconds(cooldown.until) > now and (present is None or cooldown.until > present.until):
            self._cooldowns[cooldown.scope] = cooldown
        if cooldown.learnt:
            self._learn(cooldown, now)

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Tell the state of ``deployments``; see :class:`RateLimitStore`."""
        now = round(self._time() * 1e6)
        return [self._describe(deployment, now) for deployment in deployments]

    async def aclose(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._accounts)} accounts, {len(self._reservations)} reservations)"

    # --- deciding -------------------------------------------------------------------------------------

    def _correct(self, reservation: _Reservation, used: Demand) -> None:
        """Change what a reservation took to ``used``, unless it has expired."""
        expires, requests, tokens, shelf, marks = reservation
        now = round(self._time() * 1e6)
        if now < expires:
            shelf.correct(marks, used.requests - requests, used.tokens - tokens, now)

    def _cooldown(self, deployment: Deployment, now: int) -> Cooldown | None:
        return latest_cooldown(self._cooldowns, deployment, now) if self._cooldowns else None

    def _describe(self, deployment: Deployment, now: int) -> DeploymentSnapshot:
        cooldown = self._cooldown(deployment, now)
        return self._open(deployment, now).describe(deployment, cooldown, now)

    # --- the books ------------------------------------------------------------------------------------

    def _account(self, scope: Scope) -> _Account:
        account = self._accounts.get(scope)
        if account is None:
            account = self._accounts[scope] = _Account()
        return account

    def _open(self, deployment: Deployment, now: int) -> Shelf:
        """Find or open the books of a deployment under the limits that hold now."""
        account = self._account(deployment.model_scope)
        if account.learnt:
            account.learnt = {metric: told for metric, told in account.learnt.items() if told[1] > now}
        books = tuple(self._book(account, *terms) for terms in terms_in_force(deployment, account.learnt))
        valid_until = min((until for _, until in account.learnt.values()), default=NEVER)
        if len(self._shelves) >= _MOST_SHELVES:
            self._shelves.clear()
        shelf = self._shelves[deployment] = Shelf(books, valid_until, self._version)
        return shelf

    def _book(self, account: _Account, quota: Quota, limit: int, holds_until: int) -> Book:
        """Return the account's book for ``quota``, under other limits than before if they have changed."""
        book = account.books.get(quota.metric)
        if book is None or book.quota != quota or book.ledger.limit != limit:
            if book is not None:
                self._version += 1
            if book is None or book.quota.refill is not quota.refill:
                ledger = make_ledger(quota, limit)
            else:
                ledger = book.ledger
                ledger.configure(quota, limit)
            book = account.books[quota.metric] = Book(quota, ledger)
        book.holds_until = holds_until
        return book

    def _learn(self, cooldown: Cooldown, now: int) -> None:
        """Note limits that the provider told; while one is in force, a higher one only renews it."""
        account = self._account(cooldown.scope)
        for learnt in cooldown.learnt:
            limit, until = account.learnt.get(learnt.metric, (learnt.limit, 0))
            lowest = min(limit, learnt.limit) if until > now else learnt.limit
            account.learnt[learnt.metric] = lowest, now + microseconds(LEARNT_FOR)
        self._version += 1

    # --- forgetting -----------------------------------------------------------------------------------

    def _warn_after_fork(self) -> None:
        if self._process != os.getpid():
            self._process = os.getpid()
            _log.warning(
                "a memory store is used by a forked process: parent and child now count apart, and together "
                "may take twice every quota; open sqlite:// or redis:// to share it"
            )

    def _sweep(self, now: int) -> None:
        """Drop the cooldowns that ended, and the reservations that expired; they keep what they took."""
        self._sweep_at = now + _SWEEP_EVERY
        self._warn_after_fork()
        expired = [key for key, reservation in self._reservations.items() if reservation[0] <= now]
        for reservation_id in expired:
            del self._reservations[reservation_id]
        ended = [key for key, present in self._cooldowns.items() if microseconds(present.until) <= now]
        for scope in ended:
            del self._cooldowns[scope]
