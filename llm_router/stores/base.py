"""The port between the engine and whatever keeps the state of quotas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Metric

__all__ = ["Decision", "DeploymentSnapshot", "QuotaSnapshot", "RateLimitStore", "Refusal", "Sharded"]


@attrs.frozen
class Refusal:
    """Why a store refused one candidate.

    Attributes:
        deployment: The candidate.
        reason: A metric (``"rpm"``, …), or the reason of a cooldown.
        retry_at: Seconds since the Unix epoch from which this demand fits if nobody else takes quota;
            ``math.inf`` for never.
        wake_at: The same for the smallest possible demand. The candidate is useless to everybody until then.
    """

    deployment: Deployment
    reason: str
    retry_at: float
    wake_at: float


@attrs.define
class Decision:
    """What came of a reserve. Built once per request, hence not frozen (which costs three times as much).

    Attributes:
        deployment: The candidate whose quotas were taken, or None if every candidate was refused.
        headroom: Share (0 to 1) that remains of its tightest rolling or steady quota after the taking.
        daily_headroom: The same for its daily quotas. Both are 1 where there is no such quota.
        refusals: Why the candidates before it (or all of them) were refused, in their order.
    """

    deployment: Deployment | None
    headroom: float = 1.0
    daily_headroom: float = 1.0
    refusals: tuple[Refusal, ...] = ()


@attrs.frozen
class QuotaSnapshot:
    """One quota at one moment.

    Attributes:
        metric: What is counted.
        limit: The limit in force, learnt or configured.
        used: Requests or tokens taken and not come back.
        resets_at: Seconds since the Unix epoch at which all of it is back if nobody takes more.
    """

    metric: Metric
    limit: int
    used: int
    resets_at: float


@attrs.frozen
class DeploymentSnapshot:
    """One deployment at one moment.

    Attributes:
        deployment: The deployment.
        quotas: Its quotas, in the order of the deployment's own, learnt ones at the end.
        cooldown: The cooldown that ends last among those that put it aside now, or None.
    """

    deployment: Deployment
    quotas: tuple[QuotaSnapshot, ...]
    cooldown: Cooldown | None


@runtime_checkable
class RateLimitStore(Protocol):
    """Keeps quotas, reservations and cooldowns; implement it to keep them elsewhere.

    Every store promises:

    * **Atomicity.** A reserve takes all quotas of the first candidate with room, or changes nothing. No
      window of a rolling quota ever holds more than its limit through reserves, whoever else uses the store.
    * **Sharing.** A quota belongs to the (provider, project, model) of a deployment: deployments that agree
      in these three share it, and must agree in its limits. A limit that has changed since the last run holds
      at once, with what was taken before kept.
    * **Idempotence.** The second ``settle`` or ``release`` of a reservation, and one of an unknown id,
      changes nothing.
    * **Order.** Calls on one reservation id take effect in the order they were made, *also when an earlier
      one was cancelled*: whoever cancels a reserve and then releases its id holds nothing afterwards.
    * **Expiry.** A reservation that is neither settled nor released in time keeps what it took and is
      forgotten: quota that may have been used is never given back.
    * **Bounded state.** Nothing grows with the number of requests served.

    Not promised: fairness between callers (the engine lines them up), and that a snapshot is still true when
    it is read. Every method may raise :class:`~llm_router.errors.StoreError`, and answers or raises within
    the store's own timeout.
    """

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Take ``demand`` from the first of ``candidates`` that has room in all its quotas.

        A candidate is refused while one of its scopes cools down, or one of its quotas lacks room.

        Args:
            reservation_id: Made by the caller, never used before.
            candidates: At most 128 deployments, best first (8 are usual, more where the first refused).
            demand: What to take. An amount of 0 fits always, a limit of 0 nothing.
            ttl: Seconds after which the reservation expires.
        """
        ...

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Replace the estimate of a reservation by what was really used, at the time it was taken.

        What was used beyond the limit is counted, too: the quota then stays closed for longer.
        """
        ...

    async def release(self, reservation_id: str) -> None:
        """Give back everything a reservation took: nothing was sent."""
        ...

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Put a scope aside. Of two cooldowns the one that ends later wins; :meth:`Cooldown.lift` ends any.

        Limits learnt with it hold for 24 hours, the lowest one of them; each further one renews the time.
        They only ever lower a configured limit, and add a limit where none is configured. What a learnt
        limit refuses it refuses at most until it is forgotten.
        """
        ...

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Tell the state of ``deployments``, in their order, changing nothing."""
        ...

    async def aclose(self) -> None:
        """Let go of what the store holds open. May be called twice."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """What a store may offer besides, if it keeps its deployments in several shards.

    Deployments of one project lie in one shard. A reserve whose candidates all lie in one shard is one atomic
    step and one round trip; otherwise each run of candidates of one shard is, in their order.
    """

    @property
    def shards(self) -> int:
        """How many there are; 1 if the store is not divided."""
        ...

    def shard_of(self, deployment: Deployment) -> int:
        """Return the number of the shard, from 0, that a deployment lies in. Always the same."""
        ...
