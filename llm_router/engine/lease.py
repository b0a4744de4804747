"""Quota that is taken for one request, until it is settled or released."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from llm_router.domain.quota import Demand
from llm_router.domain.response import PassedOver
from llm_router.engine.extensions import note_failure
from llm_router.engine.gate import DispatchGate
from llm_router.engine.index import DeploymentState
from llm_router.engine.timing import finish
from llm_router.stores.base import Decision, RateLimitStore

__all__ = ["NOTHING", "Lease", "Returns", "new_reservation_id"]

NOTHING = Demand(0, 0)
"""What a request takes that is not counted, and uses that was not sent."""


class Returns(Protocol):
    """Is told when quota came back early, so that those that wait for it are told."""

    def quota_returned(self, state: DeploymentState) -> None:
        """Note that all came back that a request had taken of a deployment."""
        ...

    def tokens_returned(self, state: DeploymentState) -> None:
        """Note that some of the tokens came back, for which nobody may be waiting."""
        ...


class Lease:
    """Quota taken for one request; its holder must :meth:`close` it.

    Closing settles the reservation with what :meth:`settle_at` said, at the estimate if the request was sent
    and nothing more is known, or releases it if nothing was sent.

    Args:
        store: Keeps the reservation.
        reservation_id: Its id.
        state: The deployment that it is on.
        demand: What was reserved.
        gate: Held until the request is dispatched.
        returns: Is told when quota came back early.
        decision: What the store decided.
        now: Seconds since the epoch.

    Attributes:
        probes: The half-open cooldowns that the request probes.
        is_dispatched: Whether the provider has said that the request is on its way.
        is_last: Whether it took the last of a quota, or tokens of which others lack some.
        headroom: Share (0 to 1) that remained of the tightest quota per minute once it was taken.
        daily_headroom: The same per day.
        passed_over: The first of those that were asked before in vain.
        correct: Called, once it is closed, with how many tokens more were used than reserved; or None.
    """

    __slots__ = (
        "_gate",
        "_returns",
        "_store",
        "_used",
        "correct",
        "daily_headroom",
        "demand",
        "headroom",
        "is_dispatched",
        "is_last",
        "passed_over",
        "probes",
        "reservation_id",
        "state",
    )

    def __init__(
        self,
        store: RateLimitStore,
        reservation_id: str,
        state: DeploymentState,
        demand: Demand,
        gate: DispatchGate,
        returns: Returns,
        decision: Decision,
        now: float,
    ) -> None:
        self._store = store
        self.probes = decision.probes
        self.headroom, self.daily_headroom = decision.headroom, decision.daily_headroom
        is_spent = decision.headroom <= state.spent_share or not decision.daily_headroom
        is_short = state.refusal is not None and state.lacks_tokens(now)
        self.is_last = demand is not NOTHING and (is_spent or is_short)
        self._returns = returns
        self._gate: DispatchGate | None = gate
        self._used = NOTHING
        self.reservation_id = reservation_id
        self.state = state
        self.demand = demand
        self.is_dispatched = False
        self.passed_over: tuple[PassedOver, ...] = ()
        self.correct: Callable[[int], None] | None = None

    def mark_sent(self) -> None:
        """Note that the request goes out now: from here on its quota may be used."""
        self._used = self.demand

    def mark_unsent(self) -> None:
        """Note that nothing reached the provider after all."""
        self._used = NOTHING

    def mark_dispatched(self) -> None:
        """Note that the request is on its way: the next one may start. Harmless when called again."""
        gate, self._gate = self._gate, None
        self.is_dispatched = True
        if gate is not None:
            gate.leave()

    @property
    def used(self) -> Demand:
        """What :meth:`close` settles: nothing if nothing was sent."""
        return self._used

    def settle_at(self, tokens: int) -> None:
        """Note how many input tokens the provider counted."""
        demand = self.demand
        self._used = demand if tokens == demand.tokens else Demand(demand.requests, tokens)

    async def close(self) -> None:
        """Settle or release the reservation, to the end even if the caller is cancelled; call it once.

        A store that fails is not reported: the quota stays taken, and the reservation expires by itself.
        """
        if self._gate is not None:
            self.mark_dispatched()
        if self.correct is not None:
            self.correct(self._used.tokens - self.demand.tokens)
        try:
            await self._close()
        except asyncio.CancelledError:
            # Closing is idempotent: once more, and this time to the end.
            try:
                with suppress(Exception):
                    await finish(self._close())
            finally:
                self._return_quota()
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's store raises: the answer is paid for
            note_failure(self._store, "release" if self._used is NOTHING else "settle", error)
        else:
            self._return_quota()

    def _close(self) -> Coroutine[Any, Any, None]:
        if self._used is NOTHING:
            return self._store.release(self.reservation_id)
        return self._store.settle(self.reservation_id, self._used)

    def _return_quota(self) -> None:
        """Report it if the deployment may have room before the time it is parked until."""
        if self._used is NOTHING:
            self._returns.quota_returned(self.state)
        elif self._used.tokens < self.demand.tokens:
            self._returns.tokens_returned(self.state)


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
