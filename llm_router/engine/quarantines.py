"""Notice when quarantines end: lifted by hand, by a replaced credential, or by a process that starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.engine.credentials import is_marked
from llm_router.engine.extensions import cool_down, note_failure, snapshots_of
from llm_router.engine.pool import Pool
from llm_router.engine.reporting import Reporter
from llm_router.errors import LLMRouterError
from llm_router.stores.base import RateLimitStore, Refusal

__all__ = ["Quarantines"]

_WORTH_A_TRY = 3600.0
"""Seconds after the last try after which a process that first meets a quarantine has it tried again."""


class Quarantines:
    """The quarantines that this process meets in the store.

    Args:
        store: Where they are.
        pool: Whose deployments they concern.
        reporter: Reports to observers, or None.
        on_lift: Called when requests that wait may find room, since something was lifted.

    Attributes:
        lifts: What the store last reported as ``Decision.lifts``; None before its first reply.
    """

    def __init__(
        self,
        store: RateLimitStore,
        pool: Pool,
        reporter: Reporter | None = None,
        on_lift: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._reporter = reporter
        self._on_lift = on_lift
        self.lifts: int | None = None
        self._met: set[Scope] = set()

    def notice_lifts(self, lifts: int, now: float) -> None:
        """Make ready what is parked because of a cooldown: the store reports that one was lifted."""
        before, self.lifts = self.lifts, lifts
        if before is not None:
            self._pool.rouse_cooled(now)
            self._on_lift()

    async def reopen(self, refusal: Refusal, now: float) -> bool:
        """End a quarantine whose credential was replaced; have an old one tried again, once per process.

        Return whether the deployment is to be asked again.
        """
        cooldown = refusal.cooldown
        if cooldown is None or not cooldown.credential or refusal.deployment not in self._pool.states:
            return False  # of one that a reload has changed meanwhile, the credential is not known
        change = self._change(cooldown, refusal.deployment, now)
        if change is None or change.until > -math.inf:  # the credential is the same
            self._met.add(cooldown.scope)
        if change is None:
            return False
        try:
            await self._store.cool_down(change)
        except Exception as error:  # noqa: BLE001 - of a user's store; a later request tries again
            note_failure(self._store, "cool_down", error)
            return False
        self._pool.rouse(cooldown.scope, now)
        if self._reporter is not None and change.until == -math.inf:
            self._reporter.imposed(change, refusal.deployment)
        return True

    async def end_replaced(self, deployments: Iterable[Deployment], now: float) -> None:
        """End the quarantines of deployments that other credentials than theirs have earned.

        Where the store fails, the first request that meets such a quarantine ends it.
        """
        left = list(deployments)
        try:
            while left:  # of several that apply to a deployment, a store shows one at a time
                snapshots = await snapshots_of(self._store, left)
                found = {each.cooldown: each.deployment for each in snapshots if each.cooldown is not None}
                ended = {
                    cooldown.scope: deployment
                    for cooldown, deployment in found.items()
                    if not is_marked(deployment, cooldown.credential)
                }
                for scope, deployment in ended.items():
                    await self._lift(scope, deployment, now)
                left = [each for each in left if not ended.keys().isdisjoint(each.scopes)]
        except LLMRouterError as error:
            note_failure(self._store, "snapshot", error)

    async def _lift(self, scope: Scope, deployment: Deployment, now: float) -> None:
        change = Cooldown.lift(scope)
        await cool_down(self._store, change)
        self._pool.rouse(scope, now)
        if self._reporter is not None:
            self._reporter.imposed(change, deployment)

    def would_reopen(self, cooldown: Cooldown, deployment: Deployment, now: float) -> bool:
        """Return whether a request that meets ``cooldown`` on ``deployment`` now would end it, or try it."""
        return cooldown.credential != "" and self._change(cooldown, deployment, now) is not None

    def _change(self, cooldown: Cooldown, deployment: Deployment, now: float) -> Cooldown | None:
        if not is_marked(deployment, cooldown.credential):
            return Cooldown.lift(cooldown.scope)
        if cooldown.scope in self._met or now - cooldown.since < _WORTH_A_TRY:
            return None
        return Cooldown.retry(cooldown.scope)
