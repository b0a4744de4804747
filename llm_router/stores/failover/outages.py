"""When a process goes on without a shard of the store, and when it comes back to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from llm_router.domain.deployment import Deployment
from llm_router.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from llm_router.stores.failover.backlog import Backlog
from llm_router.stores.failover.books import Books
from llm_router.stores.failover.shards import Shard, Shards
from llm_router.stores.failover.telling import Teller

__all__ = ["Outages", "StoreFailurePolicy"]

_log = logging.getLogger("llm_router")

StoreFailurePolicy = Literal["closed", "local", "open"]
"""What to do while the store fails: refuse, continue with a share of every quota, or without limits."""

_CONSEQUENCES = {
    "closed": "by refusing every request",
    "local": "with this process's share of every quota",
    "open": "without limits",
}

_CALLS = 2
"""Times that a call without an answer is made: a connection may have been lost that is there again."""

_CHECKS = 3
"""Times that a store is asked whether it answers: a proxy that restarts may cut several connections."""


class Outages:
    """Decides which shards this process does without.

    Args:
        policy: What this process does while the store fails.
        shards: The shards of the store.
        books: What this process knows of it.
        teller: Probes it.
        backlog: What it is to be told when it answers.
    """

    def __init__(
        self, policy: StoreFailurePolicy, shards: Shards, books: Books, teller: Teller, backlog: Backlog
    ) -> None:
        self._policy = policy
        self._shards = shards
        self._books = books
        self._teller = teller
        self._backlog = backlog

    async def pass_on(
        self, call: Callable[[], Awaitable[object]], sample: Deployment | None
    ) -> StoreError | None:
        """Make a call that needs no answer; return why the store did not accept it, or None if it did.

        Args:
            call: Makes it.
            sample: A deployment of the shard that it concerns, or None if it may concern all.
        """
        if sample is not None:
            shard = self._shards.of(sample)
            if shard.trouble is not None:
                return StoreUnavailableError(shard.trouble)
        failure: StoreError | None = None
        for _ in range(_CALLS):
            try:
                await call()
            except StoreError as error:
                failure = error
                try:
                    await self.fail(error, [] if sample is None else [sample])
                except StoreError:  # overload
                    return failure
                if self._shards.trouble is not None:
                    return failure
            else:
                return None
        return failure

    async def fail(self, error: StoreError, candidates: Sequence[Deployment]) -> None:
        """Do without the shards that failed, unless they answer when they are asked again.

        Raises:
            StoreTimeoutError: A shard answers, but not this call in time: it is overloaded.
        """
        if not candidates:  # it was about no deployment in particular: look at those that are in use
            candidates = [record.deployment for record in self._books.own]
        failed = {shard.number: shard for shard, _ in self._shards.runs(candidates)}
        named = self._shards.numbered(error.shard)
        for shard in [named] if named is not None else list(failed.values()) or list(self._shards):
            if shard.trouble is not None:
                continue
            if not await self._answers(shard):
                self._do_without(shard, str(error))
            elif isinstance(error, StoreTimeoutError):
                raise error

    def probe_if_due(self, shard: Shard) -> None:
        """Look in the background whether a shard answers again, if it is time to."""
        if shard.probe_is_due(self._books.times.now()):
            shard.probe = asyncio.get_running_loop().create_task(self._return_to(shard))

    async def _answers(self, shard: Shard) -> bool:
        """Whether a shard answers, and accepts writes; asked once for all calls that timed out meanwhile."""
        if shard.check is None or shard.check.done() or shard.check.get_loop().is_closed():
            shard.check = asyncio.get_running_loop().create_task(self._accepts_writes(shard))
        return await asyncio.shield(shard.check)

    async def _accepts_writes(self, shard: Shard) -> bool:
        for _ in range(_CHECKS):
            try:
                await self._teller.probe(shard.sample)
            except StoreTimeoutError:
                return False
            except StoreError:  # at once: only the connection may have been lost
                continue
            return True
        return False

    def _do_without(self, shard: Shard, trouble: str) -> None:
        is_first = self._shards.trouble is None
        level = logging.WARNING if is_first else logging.DEBUG
        shard.do_without(trouble, self._books.times.now())
        self._shards.careful = True
        _log.log(level, "the store fails, going on %s: %s", _CONSEQUENCES[self._policy], trouble)
        if is_first:
            self._shards.notify(trouble)

    async def _return_to(self, shard: Shard) -> None:
        """Check whether a shard answers again; if so, tell it what it missed."""
        books = self._books
        try:
            await self._teller.probe(shard.sample)
            await books.peers.announce()
            await self._backlog.tell(shard)
        except StoreError:
            shard.probe_later(books.times.now())
            return
        shard.trouble = None
        now = books.times.now()
        self._shards.trust_no_more(shard, now, now, books.own.longest_window)
        level = logging.WARNING if self._shards.trouble is None else logging.DEBUG
        _log.log(level, "the store answers again")
        if self._shards.trouble is None:
            self._shards.notify(None)
