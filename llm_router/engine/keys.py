"""Report the state of the keys, and change it by hand: lift a verdict, disable, enable, forget limits."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope, plain_model
from llm_router.domain.kinds import Metric
from llm_router.domain.limits import LearntLimit
from llm_router.domain.numbers import shown, whole
from llm_router.domain.status import CacheSavings, Health, KeyStatus
from llm_router.engine.extensions import cool_down, snapshots_of
from llm_router.engine.facts import SharedFacts
from llm_router.engine.lines import SharedLines
from llm_router.engine.overview import Overview, Report
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import STANDING
from llm_router.engine.reporting import Reporter
from llm_router.engine.reserving import Selector
from llm_router.engine.shared_failures import SharedFailures
from llm_router.engine.totals import DAYS_KEPT, Totals
from llm_router.engine.upstream import Upstream
from llm_router.errors import (
    InvalidRequestError,
    StoreUnavailableError,
    UnknownKeyError,
    UnknownModelError,
)
from llm_router.stores.base import DeploymentSnapshot, FrontingStore, RateLimitStore

__all__ = ["KeyManager"]

_NOBODY = "\0"
"""The id of a key and a project that does not exist."""

_MOST_NAMED = 20


@attrs.define(eq=False, repr=False)
class KeyManager:
    """Reports the state of every key of a router, and changes it for all processes that share the store.

    Other processes notice a change at their next call of the store, which one in which every request waits
    makes within two minutes. One that has nothing else to send through asks the store before it fails a send.

    Attributes:
        pool: The active deployments.
        inactive: The deployments that are configured but not used.
        store: Keeps the quotas.
        selector: Knows how many requests wait.
        upstreams: The providers.
        clock: Where time comes from.
        enter: Raises if the router is closed, or works on another event loop than the running one.
        reporter: Reports to observers, or None.
        failures: The last failures of each key, here and in other processes; None if they are not kept.
        facts: What refusals suggest, to this process or another one.
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
    enter: Callable[[], object]
    reporter: Reporter | None = None
    failures: SharedFailures | None = None
    facts: SharedFacts | None = None
    totals: Totals | None = None
    lines: SharedLines | None = None
    savings: Callable[[], Awaitable[CacheSavings | None]] | None = None
    _overview: Overview = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        overview = Overview(
            self.pool,
            self.inactive,
            self.store,
            self.selector,
            self.upstreams,
            self.clock,
            self.failures,
            self.facts,
            self.totals,
            self.lines,
            self.savings,
        )
        self._overview = overview

    def show(self, inactive: Sequence[Deployment]) -> None:
        """Show other deployments that are configured but not used."""
        self.inactive = self._overview.inactive = inactive

    # --- reporting ------------------------------------------------------------------------------------

    async def get_all_key_statuses(self, *, days: int = 1) -> list[KeyStatus]:
        """Return the status of every deployment, the inactive ones last.

        Args:
            days: For how many days it has the totals, today included; at most ``DAYS_KEPT`` (35) are kept.

        Raises:
            InvalidRequestError: It is not a number of days.
            StoreError: The store failed.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        return await self._statuses(self._deployments(), _number_of(days))

    async def statuses_of(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """Return the status of each deployment of a key, or of one of its models.

        Raises:
            UnknownKeyError: No key has this id.
            UnknownModelError: The key does not have this model.
            StoreError: The store failed.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        return await self._statuses(self._choose(key_id, model))

    async def snapshots(self) -> list[DeploymentSnapshot]:
        """Return the quotas and the cooldown of every active deployment, as the store has them now.

        Raises:
            StoreError: The store failed.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        return await snapshots_of(self.store, list(self.pool.states))

    async def health(self) -> Health:
        """Return the health of the router; a store that does not answer is reported, not raised.

        Raises:
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        return (await self._overview.report(0)).health

    async def report(self, *, days: int = 1) -> Report:
        """Return the health and the statuses, of one moment; no statuses if the store does not answer.

        Args:
            days: As for :meth:`get_all_key_statuses`.

        Raises:
            InvalidRequestError: As there.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        return await self._overview.report(_number_of(days))

    # --- changing -------------------------------------------------------------------------------------

    async def lift(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """End every cooldown and quarantine of a key, its project and its models, and forget their strikes.

        The limits that were learnt for the models are forgotten as well. What is disabled stays disabled. A
        record in the store that cannot be read begins anew, also one of the provider, or of the key though
        only a model is lifted: what it counted is lost, and each process charges its own takings again.

        Args:
            key_id: The key.
            model: If given, only what keeps this model out of use on the key's project ends.

        Returns:
            The statuses afterwards of all that it concerns: also other keys, if they share the project.

        Raises:
            UnknownKeyError: No key has this id.
            UnknownModelError: The key does not have this model.
            StoreError: The store failed. This process goes by the change all the same, and tells the store
                once that answers again.
            RouterClosedError: The router is closed.
            RouterLoopError: The router works on another event loop, which is still open.
        """
        self.enter()
        chosen = self._choose(key_id, model)
        models = {deployment.model_scope for deployment in chosen}
        scopes = set(models)
        if model is None:
            scopes |= {scope for each in chosen for scope in (each.key_scope, each.project_scope)}
            models |= self._end_shared(chosen)
        present = await self._present(chosen)
        unreadable = {scope for scope, cooldown in present.items() if cooldown and cooldown.is_unreadable}
        if unreadable:
            await self._share(map(Cooldown.lift, sorted(unreadable)))
            present = await self._present(chosen)  # what they hid may be disabled
        kept = {scope for scope, cooldown in present.items() if cooldown is not None and cooldown.is_disabled}
        await self._share(
            Cooldown.lift(scope, limits=scope in models) for scope in sorted((scopes | models) - kept)
        )
        for deployment in chosen:
            self.pool.forgive(deployment)
        return await self._changed(scopes | unreadable)

    async def disable(self, key_id: str, model: str | None = None, *, reason: str = "") -> list[KeyStatus]:
        """Keep a key out of use, for every process that shares the store, until it is enabled again.

        Args:
            key_id: The key.
            model: If given, only this model is kept out of use, on all keys that share the key's project.
            reason: Why, as statuses are to show it.

        Returns:
            As for :meth:`lift`.

        Raises:
            UnknownKeyError: As for :meth:`lift`.
            UnknownModelError: As for :meth:`lift`.
            StoreError: As for :meth:`lift`.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        chosen = self._choose(key_id, model)
        scopes = _switched(chosen, model)
        changes: list[Cooldown] = []
        for scope, cooldown in (await self._present(chosen)).items():
            lasts = cooldown is not None and cooldown.until == math.inf and not cooldown.is_disabled
            if scope in scopes and lasts:
                changes.append(Cooldown.lift(scope))  # of two that last for ever, the first would stay
        changes += [Cooldown.disable(scope, reason) for scope in scopes]
        await self._share(changes)
        return await self._changed(scopes)

    async def enable(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """Undo :meth:`disable` with the same arguments; without effect on what is not disabled.

        Args:
            key_id: The key.
            model: The model, if a model was disabled.

        Returns:
            As for :meth:`lift`.

        Raises:
            UnknownKeyError: As for :meth:`lift`.
            UnknownModelError: As for :meth:`lift`.
            StoreError: As for :meth:`lift`.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        chosen = self._choose(key_id, model)
        scopes = _switched(chosen, model)
        present = await self._present(chosen)
        disabled = [
            scope for scope in scopes if (cooldown := present[scope]) is not None and cooldown.is_disabled
        ]
        await self._share(map(Cooldown.lift, disabled))
        return await self._changed(scopes)

    async def forget_limits(self, key_id: str, model: str | None = None) -> list[KeyStatus]:
        """Forget the limits that were learnt for the models of a key, which other keys of its project share.

        Those that all models of the project share are forgotten with those of all models of the key.

        What the configuration says holds again at once, and learning starts anew. Other processes that have
        met such a limit notice within about two minutes. Nothing that is cooling down or quarantined is
        lifted.

        Args:
            key_id: The key.
            model: If given, only this model.

        Returns:
            As for :meth:`lift`.

        Raises:
            UnknownKeyError: As for :meth:`lift`.
            UnknownModelError: As for :meth:`lift`.
            StoreError: As for :meth:`lift`.
            RouterClosedError: As for :meth:`lift`.
            RouterLoopError: As for :meth:`lift`.
        """
        self.enter()
        chosen = self._choose(key_id, model)
        scopes = list(dict.fromkeys(each.model_scope for each in chosen))
        nothing = [LearntLimit(metric, None) for metric in Metric]
        forgotten = scopes if model is not None else [*scopes, *sorted(self._end_shared(chosen))]
        await self._share(Cooldown.learn(scope, *nothing) for scope in forgotten)
        if model is None:
            scopes += (each.project_scope for each in chosen)
        return await self._changed(scopes)

    def _end_shared(self, chosen: Iterable[Deployment]) -> set[Scope]:
        """Keep no limits any more that all models of a project share; return where they were learnt."""
        ended: set[Scope] = set()
        now = self.clock.time()
        for each in chosen:
            for shared in self.pool.shared.get(each.project_scope, ()):
                self.pool.unshare(shared, now)
            ended |= {stands(each).model_scope for stands in STANDING}
        return ended

    def _deployments(self) -> list[Deployment]:
        return self._overview.deployments

    async def _statuses(self, deployments: Sequence[Deployment], days: int = 1) -> list[KeyStatus]:
        return await self._overview.statuses(deployments, days)

    def _choose(self, key_id: str, model: str | None) -> list[Deployment]:
        """Return the deployments of a key, or that of one of its models."""
        known = self._deployments()
        chosen = [deployment for deployment in known if deployment.key.key_id == key_id]
        if not chosen:
            ids = {deployment.key.key_id for deployment in known}
            raise UnknownKeyError(f"no key has the id {key_id!r}{_nearest(key_id, ids)}")
        if model is None:
            return chosen
        models = {deployment.model for deployment in chosen}
        chosen = [deployment for deployment in chosen if deployment.model == plain_model(model)]
        if not chosen:
            raise UnknownModelError(f"key {key_id!r} has no model {model!r}{_nearest(model, models)}")
        return chosen

    async def _present(self, chosen: Iterable[Deployment]) -> dict[Scope, Cooldown | None]:
        """Return the cooldown of each key, project, provider and (project, model) among ``chosen``.

        A store shows the last to end of a deployment's cooldowns. So each scope is looked at through a
        deployment that has nothing else in common with the chosen ones.
        """
        looks: dict[Scope, Deployment] = {}
        for each in chosen:
            strange_key = attrs.evolve(each.key, key_id=_NOBODY)
            looks[each.model_scope] = attrs.evolve(each, key=strange_key)
            strange_project = attrs.evolve(each.key, project=_NOBODY)
            looks[each.key_scope] = attrs.evolve(each, key=strange_project, model=_NOBODY, quotas=())
            looks[each.project_scope] = attrs.evolve(each, key=strange_key, model=_NOBODY, quotas=())
            nobody = attrs.evolve(strange_key, project=_NOBODY)
            looks[each.provider_scope] = attrs.evolve(each, key=nobody, model=_NOBODY, quotas=())
        snapshots = await snapshots_of(self.store, list(looks.values()))
        found = (snapshot.cooldown for snapshot in snapshots)
        return {
            scope: cooldown if cooldown is not None and cooldown.scope == scope else None
            for scope, cooldown in zip(looks, found, strict=True)
        }

    async def _share(self, changes: Iterable[Cooldown]) -> None:
        """Make changes here and in the store."""
        for cooldown in changes:
            if cooldown.until == math.inf:
                self.pool.cool_down(cooldown)
            else:
                self.pool.rouse(cooldown.scope, self.clock.time())
            if self.reporter is not None:
                self.reporter.imposed(cooldown)
            await cool_down(self.store, cooldown)
        trouble = self.store.trouble if isinstance(self.store, FrontingStore) else None
        if trouble is not None:
            raise StoreUnavailableError(f"the change is not in the store yet: {trouble}")

    async def _changed(self, scopes: Collection[Scope]) -> list[KeyStatus]:
        """Have waiting requests look again; return the statuses of all deployments of ``scopes``."""
        self.selector.look_again()
        return await self._statuses(
            [each for each in self._deployments() if not set(each.scopes).isdisjoint(scopes)]
        )


def _number_of(days: object) -> int:
    """Return a number of days.

    Raises:
        InvalidRequestError: It is none.
    """
    number = whole(days)
    if number is None or not 1 <= number <= DAYS_KEPT:
        raise InvalidRequestError(f"days must be a whole number from 1 to {DAYS_KEPT}, not {shown(days)}")
    return number


def _switched(chosen: Iterable[Deployment], model: str | None) -> list[Scope]:
    """Return the scopes that disabling a key, or one of its models, is about."""
    scopes = (each.key_scope if model is None else each.model_scope for each in chosen)
    return list(dict.fromkeys(scopes))


def _nearest(name: object, known: Iterable[str]) -> str:
    """Return which known name may have been meant, and what there is."""
    from difflib import get_close_matches  # noqa: PLC0415 - only needed for a mistake

    names = sorted(known)
    close = get_close_matches(str(name), names, n=1)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    listed = f"use one of {', '.join(map(repr, names[:_MOST_NAMED]))}{more}"
    return f": did you mean {close[0]!r}? Or {listed}" if close else f": {listed}"
