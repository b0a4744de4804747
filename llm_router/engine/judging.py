"""Draw the consequences of a failed attempt, in this process and in the store."""

from __future__ import annotations

import logging
import math

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.engine.breaker import PATH_FAILURES
from llm_router.engine.index import DeploymentState
from llm_router.engine.pool import Pool
from llm_router.engine.retry import RetryPolicy, Verdict
from llm_router.errors import ProviderError, StoreError
from llm_router.stores.base import RateLimitStore

__all__ = ["Judge"]

_log = logging.getLogger("llm_router")


@attrs.frozen
class Judge:
    """Judges failures by a policy, and sees to the consequences.

    Attributes:
        policy: Says what a failure means.
        pool: Where deployments are parked or avoided.
        store: Where cooldowns are shared.
        clock: Where time comes from.
    """

    policy: RetryPolicy
    pool: Pool
    store: RateLimitStore
    clock: Clock

    async def judge(self, error: ProviderError, state: DeploymentState) -> Verdict:
        """Cool down, quarantine or avoid what failed; return what the request is to do next."""
        now = self.clock.time()
        verdict = self.policy.judge(error, state, now)
        breaker = state.group.breaker
        if error.kind in PATH_FAILURES:
            breaker.record_failure(state.deployment.key.key_id, now)
        elif not breaker.is_clear:
            breaker.record_success()
        if verdict.avoid_until is not None:
            self.pool.avoid(state, verdict.avoid_until, str(error))
        cooldown = verdict.cooldown
        if cooldown is not None:
            if cooldown.is_quarantine and not (state.is_parked and state.wakes_at == math.inf):
                _log.warning("%s is quarantined: %s", state.deployment.id, cooldown.reason)
            await self._cool_down(cooldown)
        return verdict

    async def _cool_down(self, cooldown: Cooldown) -> None:
        self.pool.park(cooldown.scope, cooldown.until, cooldown.reason)
        try:
            await self.store.cool_down(cooldown)
        except StoreError as error:  # this process keeps to it all the same
            _log.debug("a cooldown could not be shared: %s", error)
