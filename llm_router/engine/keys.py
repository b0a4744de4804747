"""What is known of the keys: statuses and health."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Metric
from llm_router.domain.status import Health, KeyStatus
from llm_router.engine.outage import Outage
from llm_router.engine.pool import Pool
from llm_router.engine.selector import Selector
from llm_router.errors import StoreError
from llm_router.stores.base import DeploymentSnapshot, RateLimitStore
from llm_router.stores.failover import FailoverStore

__all__ = ["KeyManager"]


@attrs.frozen(eq=False, repr=False)
class KeyManager:
    """Tells the state of every key of a router.

    Attributes:
        pool: The active deployments.
        inactive: The deployments that are configured and not used.
        store: Who keeps the quotas.
        selector: Who knows the waiting line.
        outage: Whether the provider can be reached.
        clock: Where time comes from.
    """

    pool: Pool
    inactive: Sequence[Deployment]
    store: RateLimitStore
    selector: Selector
    outage: Outage
    clock: Clock

    async def get_all_key_statuses(self) -> list[KeyStatus]:
        """Return the status of every deployment, the inactive ones last.

        Raises:
            StoreError: The store does not answer.
        """
        active = [slot.deployment for slot in self.pool]
        snapshots = await self.store.snapshot([*active, *self.inactive])
        now = self.clock.time()
        return [
            self._status(snapshot, now, active=place < len(active))
            for place, snapshot in enumerate(snapshots)
        ]

    def _status(self, snapshot: DeploymentSnapshot, now: float, *, active: bool) -> KeyStatus:
        deployment, (until, reason) = snapshot.deployment, self._aside(snapshot, now, active=active)
        usages = {quota.metric: f"{quota.used}/{quota.limit}" for quota in snapshot.quotas}
        quarantined = until == float("inf")
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
            cooldown_remaining=None if quarantined else max(until - now, 0.0),
            reason=reason if until > now else None,
            rpm_usage=usages.get(Metric.RPM, "0/∞"),
            tpm_usage=usages.get(Metric.TPM, "0/∞"),
            rpd_usage=usages.get(Metric.RPD, "0/∞"),
            tpd_usage=usages.get(Metric.TPD, "0/∞"),
        )

    def _aside(self, snapshot: DeploymentSnapshot, now: float, *, active: bool) -> tuple[float, str | None]:
        """Return until when and why a deployment is put aside, by everybody or by this process alone."""
        until, reason = now, None
        if snapshot.cooldown is not None:
            until, reason = snapshot.cooldown.until, snapshot.cooldown.reason
        if active:
            slot = self.pool.slot(snapshot.deployment)
            if slot.held > until and slot.refusal is not None:
                until, reason = slot.held, slot.refusal.reason
        return until, reason

    async def health(self) -> Health:
        """Return the health of the router; a store that does not answer is reported, not raised."""
        problems: list[str] = []
        statuses: list[KeyStatus] = []
        try:
            statuses = await self.get_all_key_statuses()
        except StoreError as error:
            problems.append(f"store: {error}")
        if isinstance(self.store, FailoverStore) and self.store.trouble and not problems:
            problems.append(f"store: {self.store.trouble}; this process is on its own")
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
        benched = self.outage.until - self.clock.time()
        if benched > 0:
            problems.append(f"provider: cannot be reached, benched for {benched:.1f} s")
        store = self.store.behind if isinstance(self.store, FailoverStore) else self.store
        active = {slot.deployment.key.key_id for slot in self.pool}
        total = active | {deployment.key.key_id for deployment in self.inactive}
        return Health(
            healthy=bool(statuses) and benched <= 0 and len(cooling) < len(active),
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
