"""Keep the limits that all models of a project share: which projects have some, and how their count begins.

A provider may refuse a request for want of a quota of the whole project, or because the project has spent
too much in ten minutes. What stands for all its models is then a
:class:`~llm_router.domain.deployment.ProjectDeployment`, and another one for what they spend: the store
counts on it and learns limits of it as of any other, and nothing of it is configured. Which projects have one
is in ``Pool.shared``: those of which the store knows something before the first request, those for which this
process was refused so, and those that it finds cooling down because another process was.

As long as there is none, nothing here is on the path of a request. From then on the selector reserves through
a :class:`~llm_router.engine.project_store.ProjectStore`, which reserves on the project what was granted on
one of its deployments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, ProjectDeployment, Scope
from llm_router.domain.kinds import FailureKind, FaultScope, Metric
from llm_router.domain.limits import LearntLimit, LimitSource
from llm_router.domain.quota import MAX_LIMIT, Demand
from llm_router.engine.evidence import WINDOW, begin_to_count
from llm_router.engine.extensions import note_failure, snapshots_of
from llm_router.engine.index import DeploymentState, Group
from llm_router.engine.pool import Pool
from llm_router.engine.retry import SPENDING_SPENT, is_spending, names_quota
from llm_router.engine.timing import Deadlines
from llm_router.errors import ProviderError, QuotaViolation
from llm_router.stores.base import DeploymentSnapshot, QuotaSnapshot, RateLimitStore, Taking

__all__ = [
    "STANDING",
    "ProjectSearch",
    "added_up",
    "counted_from_now",
    "heed",
    "heed_counts",
    "in_requests",
    "is_known",
    "is_of_project",
    "known_by_project",
    "projects_of",
    "refused_by",
    "shared_state",
    "uncounted_by",
]

STANDING = ProjectDeployment.of, ProjectDeployment.spending_of
"""What may stand for the project of a deployment."""

_FEW = 16
"""Most projects that are looked at for limits of which this process has not heard, to report them."""

_MANY = 512
"""The same before the first request."""

_PATIENCE = 1.0
"""Most seconds for which the first requests wait for that."""


# --- which projects ------------------------------------------------------------------------------------


def is_of_project(error: ProviderError) -> bool:
    """Return whether a refusal is about limits that all models of a project share, and that admit something.

    Either it names quotas, or it is for what was spent in ten minutes. Credits that are used up, and a cap on
    the month, are the project's as well, but nothing that can be counted here.
    """
    if error.kind is not FailureKind.QUOTA or error.scope is not FaultScope.PROJECT:
        return False
    is_named = any(violation.metric is not None for violation in error.violations)
    return is_spending(error) or (is_named and all(each.limit != 0 for each in error.violations))


def refused_by(error: ProviderError, deployment: Deployment) -> ProjectDeployment:
    """Return what stands for the project of a deployment, by what such a refusal is about."""
    return (ProjectDeployment.spending_of if is_spending(error) else ProjectDeployment.of)(deployment)


def in_requests(error: ProviderError) -> ProviderError:
    """Return a refusal for what was spent as one for requests, by which that is counted."""
    return ProviderError(
        str(error),
        kind=error.kind,
        scope=error.scope,
        code=error.code,
        retry_delay=error.retry_delay,
        violations=(QuotaViolation(Metric.RPM, None),),
    )


def shared_state(state: DeploymentState, shared: ProjectDeployment) -> DeploymentState:
    """Return a new state that stands for the project of a deployment."""
    return DeploymentState(shared, 0, 1.0, 0, group=Group(state.group.upstream, "", shared.model))


def heed(pool: Pool, state: DeploymentState, cooldown: Cooldown) -> None:
    """Keep the limits of a project from now on, if it cools down because a quota of all its models is spent.

    So another process found it, and what is known of the limits is in the store.
    """
    deployment = state.deployment
    if cooldown.scope != deployment.project_scope:
        return
    if cooldown.reason == SPENDING_SPENT:
        _keep(pool, ProjectDeployment.spending_of(deployment))
    elif names_quota(cooldown):
        _keep(pool, ProjectDeployment.of(deployment))


def heed_counts(pool: Pool, snapshots: Iterable[DeploymentSnapshot]) -> None:
    """Keep those limits of projects from now on of which the store knows something.

    What a status or an explanation shows then holds for the next request as well, also where another process
    found it, or this one before a reload.
    """
    for each in snapshots:
        if is_known(each.quotas) and isinstance(each.deployment, ProjectDeployment):
            _keep(pool, each.deployment)


@attrs.define(eq=False)
class ProjectSearch:
    """Asks the store, before the first request, which projects have limits that other processes have learnt.

    Otherwise each process would meet a refusal of each of these projects; which is what happens where there
    are more than 512, or where the store fails.

    Attributes:
        pool: The deployments.
        store: Knows.
        deadlines: Limits the call.
    """

    pool: Pool
    store: RateLimitStore
    deadlines: Deadlines

    @property
    def is_due(self) -> bool:
        """Whether there are projects that it has not asked for."""
        return any(state.deployment.project_scope not in self.pool.searched for state in self.pool)

    async def run(self) -> None:
        """Ask for those projects, and keep what is known of them from now on."""
        projects = {state.deployment.project_scope: state.deployment for state in self.pool}
        new = [each for scope, each in projects.items() if scope not in self.pool.searched]
        self.pool.searched = frozenset(projects)  # before: if this is cancelled, nobody begins anew
        if len(new) <= _MANY:
            await self._ask([stands(each) for each in new for stands in STANDING])

    async def _ask(self, standing: list[ProjectDeployment]) -> None:
        try:
            with self.deadlines.limit(_PATIENCE):
                heed_counts(self.pool, await snapshots_of(self.store, standing))
        except Exception as error:  # noqa: BLE001 - of a user's store; refusals tell of the limits, too
            note_failure(self.store, "snapshot", error)


def _keep(pool: Pool, shared: ProjectDeployment) -> None:
    if pool.sharing(shared) is None and (states := pool.of(shared.project_scope)):
        pool.share(shared_state(states[0], shared))


def is_known(quotas: Iterable[QuotaSnapshot]) -> bool:
    """Return whether anything was learnt of what all models of a project share."""
    return any(quota.learnt is not None for quota in quotas)


def known_by_project(snapshots: Iterable[DeploymentSnapshot]) -> dict[Scope, list[DeploymentSnapshot]]:
    """Return what stands for projects and of which something was learnt, by the scope of the project."""
    found: dict[Scope, list[DeploymentSnapshot]] = {}
    for each in snapshots:
        if is_known(each.quotas):
            found.setdefault(each.deployment.project_scope, []).append(each)
    return found


def projects_of(deployments: Iterable[Deployment], pool: Pool) -> list[Deployment]:
    """Return what stands for the projects of deployments, where it is worth a look.

    Of few projects that is each one: a process that only reports has not heard of any.
    """
    found = {each.project_scope: each for each in deployments}
    if len(found) > _FEW:
        return [state.deployment for scope in found for state in pool.shared.get(scope, ())]
    return [stands(each) for each in found.values() for stands in STANDING]


# --- how the count begins ------------------------------------------------------------------------------


def added_up(quotas: Sequence[Sequence[QuotaSnapshot]], metric: Metric) -> QuotaSnapshot | None:
    """Return a quota of several models as if it were one, or None if not all of them count it.

    Where some of it was not counted all day, neither is the sum.
    """
    found = [each for of_model in quotas for each in of_model if each.metric is metric]
    in_part = (each.learnt is not None and each.learnt.source is LimitSource.UNKNOWN for each in found)
    if not found or len(found) < len(quotas) or (metric.is_daily and any(in_part)):
        return None
    limit = min(sum(each.limit for each in found), MAX_LIMIT)
    used = sum(each.used for each in found)
    return QuotaSnapshot(metric, limit, used, max(each.resets_at for each in found))


def uncounted_by(
    own: Sequence[QuotaSnapshot], quotas: Sequence[Sequence[QuotaSnapshot]], now: float
) -> list[Taking]:
    """Return what the models of a project took in the last minute and the project does not count.

    When each of it was taken is not known: none of it comes back before the last of it must.
    """
    counted = {quota.metric: quota.used for quota in own}
    missing, last = {}, now - WINDOW
    for metric in (Metric.RPM, Metric.TPM):
        found = [each for of_model in quotas for each in of_model if each.metric is metric]
        missing[metric] = max(sum(each.used for each in found) - counted.get(metric, 0), 0)
        last = max([last, *(each.resets_at - WINDOW for each in found if each.used)])
    used = Demand(missing[Metric.RPM], missing[Metric.TPM])
    return [Taking(min(last, now), used)] if used.requests or used.tokens else []


def counted_from_now(
    error: ProviderError, own: Sequence[QuotaSnapshot], learnt: Sequence[LearntLimit]
) -> tuple[LearntLimit, ...]:
    """Return limits that have a store count what a refusal names, where it does not do so yet."""
    known = {*(quota.metric for quota in own), *(entry.metric for entry in learnt)}
    named = dict.fromkeys(each.metric for each in error.violations if each.metric is not None)
    return tuple(begin_to_count(metric) for metric in named if metric not in known)
