"""Bring a running engine to another configuration: all that can fail first, and then one step."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import attrs

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import GUARD, Quota
from llm_router.domain.reload import ReloadReport
from llm_router.engine.argument_check import check_workloads, deployments_in
from llm_router.engine.keys import KeyManager
from llm_router.engine.pool import Pool
from llm_router.engine.pool_check import check_deployments
from llm_router.engine.sending import Sender
from llm_router.engine.upstream import Upstreams

__all__ = ["Changes", "Reloader", "Terms", "longest_guard"]


SECRET = "secret"  # noqa: S105 - what the report calls it
"""What a report says has changed where a secret was replaced."""


@attrs.frozen
class Terms:
    """What can be changed while a router runs.

    Attributes:
        deployments: The deployments to use; at least one.
        inactive: Those that are only shown.
        workloads: From lightest to heaviest.
        max_retries: Most attempts after the first.
        base_backoff: Upper bound of the first backoff, in seconds.
        max_wait: Most seconds that a send waits for capacity.
    """

    deployments: tuple[Deployment, ...]
    inactive: tuple[Deployment, ...]
    workloads: tuple[str, ...]
    max_retries: int
    base_backoff: float
    max_wait: float

    def but_as(self, other: Terms, names: Container[str]) -> Terms:
        """Return these terms, but for those of the given names, which are as in ``other``."""
        known = attrs.asdict(other, recurse=False)
        kept: Any = {name: value for name, value in known.items() if name in names}
        return attrs.evolve(self, **kept)

    def with_pool(
        self,
        deployments: Iterable[Deployment],
        inactive: Iterable[Deployment] | None,
        workloads: Sequence[str] | None,
    ) -> Terms:
        """Return these terms with other deployments, once these have been checked by themselves.

        Raises:
            ConfigError: They are none.
        """
        terms = attrs.evolve(self, deployments=deployments_in("deployments", deployments))
        if inactive is not None:
            terms = attrs.evolve(terms, inactive=deployments_in("inactive", inactive))
        if workloads is not None:
            terms = attrs.evolve(terms, workloads=check_workloads(workloads))
        return terms


@attrs.frozen(eq=False)
class Changes:
    """What a reload changes.

    Attributes:
        terms: What to go by from now on; what has not changed is the same object as before.
        before: What those deployments were that go on under other terms.
        report: What has changed, in words.
    """

    terms: Terms
    before: Mapping[Deployment, Deployment]
    report: ReloadReport


@attrs.define(eq=False, repr=False)
class Reloader:
    """Changes the terms of an engine.

    Attributes:
        terms: The present ones.
        pool: The deployments.
        upstreams: Their providers.
        sender: Sends through them.
        keys: Reports them.
    """

    terms: Terms
    pool: Pool
    upstreams: Upstreams
    sender: Sender
    keys: KeyManager

    async def settle(self, report: ReloadReport) -> None:
        """End the verdicts on secrets that were replaced, as far as the store answers."""
        names = {name for name, what in report.changed.items() if SECRET in what}
        rotated = [state.deployment for state in self.pool if state.deployment.id in names]
        if rotated:
            selector = self.sender.selector
            await selector.quarantines.end_replaced(rotated, self.sender.clock.time())
            selector.look_again()

    def compare(self, terms: Terms) -> Changes:
        """Return what is to change for other terms. It may run in a thread: of many, it takes a while.

        Raises:
            ConfigError: The deployments contradict each other.
        """
        check_deployments(terms.deployments, terms.workloads)
        deployments, before, report = _compare(self.terms.deployments, terms.deployments)
        terms = attrs.evolve(terms, deployments=deployments)
        return Changes(terms, before, attrs.evolve(report, settings=_settings(self.terms, terms)))

    def apply(self, changes: Changes) -> None:
        """Go by other terms from now on; requests on their way end on the deployment that they are on.

        Nothing is awaited: no request sees a part of it, and no store is asked. What is known of a deployment
        that has the same secret and is in the same scopes goes on.

        Raises:
            ConfigError: A provider has no adapter. Nothing changes then.
        """
        terms = changes.terms
        upstreams = self.upstreams.of(terms.deployments)
        # From here on nothing can fail.
        self.terms = terms
        sender = self.sender
        self.pool.replace(terms.deployments, upstreams, changes.before, sender.clock.time())
        sender.orders.refresh(terms.workloads)
        sender.preparation.add(upstream.provider for upstream in upstreams.values())
        policy = attrs.evolve(sender.policy, max_retries=terms.max_retries, base_backoff=terms.base_backoff)
        sender.policy = sender.judge.policy = policy
        sender.max_wait = terms.max_wait
        self.keys.show(terms.inactive)
        sender.selector.follow(sender.orders.values(), longest_guard(terms.deployments))


def longest_guard(deployments: Iterable[Deployment]) -> float:
    """Return the longest guard of the quotas of deployments, in seconds."""
    return max((quota.guard for deployment in deployments for quota in deployment.quotas), default=GUARD)


def _compare(
    before: Sequence[Deployment], after: Sequence[Deployment]
) -> tuple[tuple[Deployment, ...], dict[Deployment, Deployment], ReloadReport]:
    """Return the deployments to use, what those were that go on under other terms, and what has changed.

    What has not changed is the same object as before: deployments, keys and secrets alike, since stores and
    adapters know them by that.
    """
    known = {deployment.id: deployment for deployment in before}
    keys = {deployment.key.key_id: deployment.key for deployment in before}
    used: list[Deployment] = []
    earlier: dict[Deployment, Deployment] = {}
    changed: dict[str, tuple[str, ...]] = {}
    for fresh in after:
        key_id = fresh.key.key_id
        key = keys[key_id] = _kept(keys.get(key_id), fresh.key)
        deployment = fresh if key is fresh.key else attrs.evolve(fresh, key=key)
        present = known.get(deployment.id)
        if present is not None:
            what = _differences(present, deployment)
            if not what:
                deployment = present
            else:
                changed[deployment.id] = what
                if present.scopes == deployment.scopes and present.key.secret.is_same(key.secret):
                    earlier[deployment] = present
        used.append(deployment)
    ids = {deployment.id for deployment in used}
    report = ReloadReport(
        added=tuple(deployment.id for deployment in used if deployment.id not in known),
        removed=tuple(name for name in known if name not in ids),
        changed=changed,
    )
    return tuple(used), earlier, report


def _kept(present: Key | None, fresh: Key) -> Key:
    """Return the key as it is known, unless something about it has changed."""
    is_known = present is not None and present == fresh and present.secret.is_same(fresh.secret)
    return present if is_known and present is not None else fresh


def _differences(before: Deployment, after: Deployment) -> tuple[str, ...]:
    """Say in a few words each how a deployment has changed."""
    found: list[str] = []
    for name, old, new in (
        ("provider", before.key.provider, after.key.provider),
        ("project", before.key.project, after.key.project),
        ("workload", before.workload, after.workload),
        ("priority", before.priority, after.priority),
        ("weight", before.weight, after.weight),
        ("methods", ", ".join(sorted(before.methods)), ", ".join(sorted(after.methods))),
    ):
        if old != new:
            found.append(f"{name} {old} → {new}")
    if not before.key.secret.is_same(after.key.secret):
        found.append(SECRET)
    return (*found, *_limits(before.quotas, after.quotas))


def _limits(before: Sequence[Quota], after: Sequence[Quota]) -> list[str]:
    if tuple(before) == tuple(after):
        return []
    old, new = ({quota.metric: quota for quota in quotas} for quotas in (before, after))
    pairs = [(metric, old.get(metric), new.get(metric)) for metric in dict.fromkeys((*old, *new))]
    found = [f"{metric.value} {_shown(was)} → {_shown(now)}" for metric, was, now in pairs if was != now]
    return found or ["limits"]


def _shown(quota: Quota | None) -> str:
    if quota is None:
        return "unlimited"
    return "learn" if quota.adaptive else str(quota.limit)


def _settings(before: Terms, after: Terms) -> tuple[str, ...]:
    names = ("workloads", "max_retries", "base_backoff", "max_wait")
    return tuple(name for name in names if getattr(before, name) != getattr(after, name))
