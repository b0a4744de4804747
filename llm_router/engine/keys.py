"""Report the state of the keys: statuses and health."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Metric
from llm_router.domain.status import Health, KeyStatus
from llm_router.engine.pool import Pool
from llm_router.engine.reserving import Selector
from llm_router.engine.upstream import Upstream
from llm_router.errors import StoreError
from llm_router.stores.base import DeploymentSnapshot, FrontingStore, RateLimitStore

__all__ = ["KeyManager"]


@attrs.frozen(eq=False, repr=False)
class KeyManager:
    """Reports the state of every key of a router.

    Attributes:
        pool: The active deployments.
        inactive: The deployments that are configured but not used.
        store: Keeps the quotas.
        selector: Knows how many requests wait.
        upstreams: The providers.
        clock: Where time comes from.
    """

    pool: Pool
    inactive: Sequence[Deployment]
    store: RateLimitStore
    selector: Selector
    upstreams: Sequence[Upstream]
    clock: Clock

    async def get_all_key_statuses(self) -> list[KeyStatus]:
        """Return the status of every deployment, the inactive ones last.

        Raises:
            StoreError: The store failed.
        """
        active = list(self.pool.states)
        snapshots = await self.store.snapshot([*active, *self.inactive])
        now = self.clock.time()
        return [
            self._status(snapshot, now, active=position < len(active))
            for position, snapshot in enumerate(snapshots)
        ]

    def _status(self, snapshot: DeploymentSnapshot, now: float, *, active: bool) -> KeyStatus:
        deployment, (until, reason) = snapshot.deployment, self._unusable(snapshot, now, active=active)
        usages = {quota.metric: f"{quota.used}/{quota.limit}" for quota in snapshot.quotas}
        quarantined = snapshot.cooldown is not None and snapshot.cooldown.is_quarantine and until > now
        return KeyStatus(
            key_id=deployment.key.key_id,
            model=deployment.model,
            provider=deployment.key.provider,
            project=deployment.key.project,
            workload=deployment.workload,
            priority=deployment.priority,
            active=active,
            in_cooldown=until > now,
            quarantined=quarantined,
            cooldown_remaining=None if until == math.inf else max(until - now, 0.0),
            reason=reason if until > now else None,
            rpm_usage=usages.get(Metric.RPM, "0/∞"),
            tpm_usage=usages.get(Metric.TPM, "0/∞"),
            rpd_usage=usages.get(Metric.RPD, "0/∞"),
            tpd_usage=usages.get(Metric.TPD, "0/∞"),
        )

    def _unusable(
        self, snapshot: DeploymentSnapshot, now: float, *, active: bool
    ) -> tuple[float, str | None]:
        """Return until when and why a deployment is not used: by any process, or by this one alone."""
        until, reason = now, None
        if snapshot.cooldown is not None:
            until, reason = snapshot.cooldown.until, snapshot.cooldown.reason
        if active:
            state = self.pool.states[snapshot.deployment]
            if state.avoided_until > until and state.refusal is not None:
                until, reason = state.avoided_until, state.refusal.reason
        return until, reason

    async def health(self) -> Health:
        """Return the health of the router; a store that does not answer is reported, not raised."""
        problems: list[str] = []
        statuses: list[KeyStatus] = []
        try:
            statuses = await self.get_all_key_statuses()
        except StoreError as error:
            problems.append(f"store: {error}")
        fronting = self.store if isinstance(self.store, FrontingStore) else None
        if fronting is not None and fronting.trouble and not problems:
            problems.append(f"store: {fronting.trouble}; this process is on its own")
        store_ok = not problems
        by_key: defaultdict[str, list[KeyStatus]] = defaultdict(list)
        for status in statuses:
            if status["active"]:
                by_key[status["key_id"]].append(status)
        cooling = {key for key, rows in by_key.items() if all(row["in_cooldown"] for row in rows)}
        dead = {key for key, rows in by_key.items() if all(row["quarantined"] for row in rows)}
        problems += [
            f"{row['key_id']}/{row['model']}: {row['reason']}" for row in statuses if row["quarantined"]
        ]
        now = self.clock.time()
        unreachable = [upstream for upstream in self.upstreams if upstream.breaker.open_until > now]
        problems += [
            f"provider {upstream.name}: cannot be reached, tried again in "
            f"{upstream.breaker.open_until - now:.1f} s"
            for upstream in unreachable
        ]
        names = {upstream.name for upstream in unreachable}
        usable = any(
            status["active"] and not status["in_cooldown"] and status["provider"] not in names
            for status in statuses
        )
        store = self.store if fronting is None else fronting.behind
        active = {deployment.key.key_id for deployment in self.pool.states}
        total = active | {deployment.key.key_id for deployment in self.inactive}
        return Health(
            healthy=usable,
            total_keys=len(total),
            active_keys=len(active),
            in_cooldown=len(cooling - dead),
            quarantined=len(dead),
            deployments=len(self.pool),
            waiting=self.selector.waiting,
            store=type(store).__name__,
            store_ok=store_ok,
            problems=problems,
        )
