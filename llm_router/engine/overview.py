"""How a router is at one moment: the statuses of its deployments, and its health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import is_unreadable
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.status import (
    CacheSavings,
    DayTotals,
    FactStatus,
    FailureStatus,
    Health,
    HealthState,
    KeyStatus,
    LineStatus,
)
from llm_router.domain.wording import seconds_words
from llm_router.engine.credentials import is_marked
from llm_router.engine.extensions import snapshots_of
from llm_router.engine.facts import SharedFacts
from llm_router.engine.lines import SharedLines, line_of
from llm_router.engine.paces import Paces
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import heed_counts, known_by_project, projects_of
from llm_router.engine.reserving import Selector
from llm_router.engine.shared_failures import SharedFailures
from llm_router.engine.statuses import Found, count_unusable, describe
from llm_router.engine.totals import Totals
from llm_router.engine.upstream import Upstream
from llm_router.errors import ExtensionError, StoreError
from llm_router.stores.base import (
    DeploymentSnapshot,
    ExternalStore,
    FrontingStore,
    RateLimitStore,
    innermost,
)

__all__ = ["Overview", "Report"]

_log = logging.getLogger("llm_router")

_PATIENCE = 2.0
"""Seconds that statuses wait for the records, which only add to what the store says."""

_Recorded = tuple[
    Mapping[Deployment, Sequence[DayTotals]],
    Mapping[str, FactStatus],
    Mapping[Key, Sequence[FailureStatus]],
]


@attrs.frozen
class Report:
    """How a router is at one moment.

    Attributes:
        health: As a whole.
        keys: Each of its deployments, the inactive ones last.
    """

    health: Health
    keys: list[KeyStatus]


@attrs.define(eq=False, repr=False)
class Overview:
    """Puts together what the store, the records and this process know of the deployments of a router.

    Attributes:
        pool: The active deployments.
        inactive: The deployments that are configured but not used.
        store: Keeps the quotas.
        selector: Knows how many requests wait.
        upstreams: The providers.
        clock: Where time comes from.
        failures: The last failures of each key, here and in other processes; None if they are not kept.
        facts: What refusals suggest, to this process or another one; None if they are not kept.
        totals: What each key did by day; None if it is not counted.
        lines: What waits in all processes; None if they are not kept.
        savings: Asks what a cache has saved; None if they are not kept.
    """

    pool: Pool
    inactive: Sequence[Deployment]
    store: RateLimitStore
    selector: Selector
    upstreams: Collection[Upstream]
    clock: Clock
    failures: SharedFailures | None
    facts: SharedFacts | None
    totals: Totals | None
    lines: SharedLines | None = None
    savings: Callable[[], Awaitable[CacheSavings | None]] | None = None
    _paces: Paces = attrs.field(factory=Paces, init=False)

    @property
    def deployments(self) -> list[Deployment]:
        """All deployments, the inactive ones last."""
        return [*self.pool.states, *self.inactive]

    async def report(self, days: int) -> Report:
        """Return the health and the statuses; a store that does not answer is reported, not raised.

        Args:
            days: For how many days the statuses have totals, today included; 0 for none.
        """
        problems: list[str] = []
        statuses: list[KeyStatus] = []
        try:
            statuses = await self.statuses(self.deployments, days)
        except (StoreError, ExtensionError) as error:
            problems.append(f"store: {error}")
        fronting = self.store if isinstance(self.store, FrontingStore) else None
        if fronting is not None and fronting.trouble and not problems:
            problems.append(f"store: {fronting.trouble}; this process is on its own")
        store_ok = not problems
        if store_ok:
            problems += await self._advice()
        problems += [
            f"{row['key_id']}/{row['model']}: {row['reason']}"
            for row in statuses
            if row["quarantined"] or is_unreadable(row["reason"] or "")
        ]
        now = self.clock.time()
        unreachable = [upstream for upstream in self.upstreams if upstream.breaker.open_until > now]
        problems += [
            f"provider {upstream.name}: {upstream.breaker.reason.removeprefix('the provider ')}, "
            f"tried again in {seconds_words(upstream.breaker.open_until - now)}"
            for upstream in unreachable
        ]
        usable = any(status["state"] == "ready" for status in statuses)
        usable_at = min((at for row in statuses if (at := row["usable_at"]) is not None), default=None)
        store = self.store if fronting is None else fronting.behind
        active = {deployment.key.key_id for deployment in self.pool.states}
        total = active | {deployment.key.key_id for deployment in self.inactive}
        unusable = count_unusable(statuses)
        line, saved = await asyncio.gather(self._line(store_ok=store_ok), self._saved(store_ok=store_ok))
        health = Health(
            healthy=usable,
            state=_state(statuses, usable=usable, store_ok=store_ok),
            usable_in_seconds=None if usable_at is None else max(usable_at - now, 0.0),
            usable_at=usable_at,
            total_keys=len(total),
            active_keys=len(active),
            in_cooldown=unusable["in_cooldown"],
            quarantined=unusable["quarantined"],
            disabled=unusable["disabled"],
            spent=unusable["spent"],
            paced=unusable["paced"],
            deployments=len(self.pool),
            waiting=self.selector.waiting,
            line=line,
            cache=saved,
            store=type(store).__name__,
            store_ok=store_ok,
            problems=problems,
            facts=[
                f"{row['key_id']}/{row['model']}: {fact['words']}"
                for row in statuses
                for fact in row["facts"]
            ],
        )
        return Report(health, statuses)

    async def _advice(self) -> list[str]:
        """Return what in the setup of the store endangers the count."""
        store = innermost(self.store)
        if isinstance(store, ExternalStore):
            with suppress(StoreError):
                return [f"store: {advice}" for advice in await store.advice()]
        return []

    async def statuses(self, deployments: Sequence[Deployment], days: int = 1) -> list[KeyStatus]:
        """Return the statuses of deployments.

        Raises:
            StoreError: The store failed.
        """
        states = self.pool.states  # of the same moment as the deployments, whatever a reload does meanwhile
        projects = projects_of(deployments, self.pool)
        found = await snapshots_of(self.store, [*deployments, *projects])
        snapshots, of_projects = found[: len(deployments)], found[len(deployments) :]
        heed_counts(self.pool, of_projects)
        shared = known_by_project(of_projects)
        totals, known, failures = await self._recorded(deployments, days)
        now = self.clock.time()
        return [
            describe(
                snapshot,
                states.get(snapshot.deployment),
                now,
                self._paces,
                Found(
                    self._facts_of(snapshot.deployment, known, now),
                    self._failures_of(snapshot.deployment.key, failures),
                    totals.get(snapshot.deployment, ()),
                ),
                shared.get(snapshot.deployment.project_scope, ()),
                self.selector.pacer,
            )
            for snapshot in map(_without_replaced, snapshots)
        ]

    async def _line(self, *, store_ok: bool) -> LineStatus:
        if self.lines is not None and store_ok:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    return await self.lines.known()
        return line_of([self.selector.queued.counts])

    async def _saved(self, *, store_ok: bool) -> CacheSavings | None:
        if self.savings is None or not store_ok:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self.savings()
        except Exception as error:  # noqa: BLE001 - a record store of a user may raise anything
            _log.debug("what the cache saved cannot be read: %s", type(error).__name__)
            return None

    async def _recorded(self, deployments: Sequence[Deployment], days: int) -> _Recorded:
        """Return what the records have: totals, facts and failures; nothing while the store fails."""
        if isinstance(self.store, FrontingStore) and self.store.trouble is not None:
            return {}, {}, {}

        async def counted() -> Mapping[Deployment, Sequence[DayTotals]]:
            if self.totals is None or not days:
                return {}
            return await self.totals.of(deployments, days) or {}

        async def suspected() -> Mapping[str, FactStatus]:
            return {} if self.facts is None else await self.facts.known()

        async def failed() -> Mapping[Key, Sequence[FailureStatus]]:
            if self.failures is None or self.totals is None or not days:  # nothing is shared, or asked for
                return {}
            return await self.failures.known({each.key for each in deployments})

        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.gather(counted(), suspected(), failed())
        except TimeoutError:
            return {}, {}, {}

    def _failures_of(
        self, key: Key, shared: Mapping[Key, Sequence[FailureStatus]]
    ) -> Sequence[FailureStatus]:
        """Return the last failures of a key: of all processes or, if that is not known, of this one."""
        if key in shared or self.failures is None:
            return shared.get(key, ())
        return self.failures.log.of(key)

    def _facts_of(
        self, deployment: Deployment, known: Mapping[str, FactStatus], now: float
    ) -> list[FactStatus]:
        """Return what is suspected of a deployment: by this process or, if it sees nothing, by another."""
        own = [] if self.facts is None else self.facts.suspicions.about(deployment, now)
        told = known.get(deployment.model_scope)
        return own or ([] if told is None else [told])


def _without_replaced(snapshot: DeploymentSnapshot) -> DeploymentSnapshot:
    """Return a snapshot without a quarantine that another credential has earned: the next request ends it."""
    cooldown = snapshot.cooldown
    if cooldown is None or is_marked(snapshot.deployment, cooldown.credential):
        return snapshot
    return attrs.evolve(snapshot, cooldown=None)


def _state(statuses: Iterable[KeyStatus], *, usable: bool, store_ok: bool) -> HealthState:
    """Say in a word whether a send may succeed now."""
    if not store_ok:
        return "store_lost"
    if usable:
        return "healthy"
    # What is disabled gives no hope; of the others, one that only lacks quota comes back by itself.
    found = {row["state"] for row in statuses}
    if "paced" in found:
        return "paced"
    return "spent" if "spent" in found else "unusable"
