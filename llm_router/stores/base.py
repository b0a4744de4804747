"""The port between the engine and whatever keeps the state of quotas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import Demand, Metric

__all__ = [
    "Decision",
    "DeploymentSnapshot",
    "FrontingStore",
    "QuotaSnapshot",
    "RateLimitStore",
    "Refusal",
    "Sharded",
]


@attrs.frozen
class Refusal:
    """Why a store refused one candidate.

    Attributes:
        deployment: The candidate.
        reason: A metric (``"rpm"``, …), or the reason of a cooldown.
        retry_at: When this demand will fit if no other caller takes quota, in seconds since the Unix epoch;
            ``math.inf`` for never.
        wake_at: The same for the smallest possible demand. Until then no caller can use the candidate.
        cooldown: The cooldown that refuses it (the last to end), or None if only quotas do.
    """

    deployment: Deployment
    reason: str
    retry_at: float
    wake_at: float
    cooldown: Cooldown | None = None


@attrs.define
class Decision:
    """The outcome of a reserve. Created once per request, hence not frozen (which costs three times as much).

    Attributes:
        deployment: The candidate whose quotas were taken, or None if every candidate was refused.
        headroom: The share (0 to 1) that remains of its tightest rolling or steady quota afterwards.
        daily_headroom: The same for its daily quotas. Both are 1 if there is no such quota.
        refusals: Why the candidates before it (or all candidates) were refused, in their order.
        probes: The half-open cooldowns that this grant tries: the request is the one that goes first.
        lifts: A number that changes whenever a cooldown is lifted or made due, by whatever process. When it
            has changed, deployments that were refused because of a cooldown may be usable again.
    """

    deployment: Deployment | None
    headroom: float = 1.0
    daily_headroom: float = 1.0
    refusals: tuple[Refusal, ...] = ()
    probes: tuple[Cooldown, ...] = ()
    lifts: int = 0


@attrs.frozen
class QuotaSnapshot:
    """One quota at one time.

    Attributes:
        metric: What is counted.
        limit: The limit in force, learnt or configured.
        used: Requests or tokens that were taken and have not come back.
        resets_at: When all of it will be back if nothing more is taken, in seconds since the Unix epoch.
    """

    metric: Metric
    limit: int
    used: int
    resets_at: float


@attrs.frozen
class DeploymentSnapshot:
    """One deployment at one time.

    Attributes:
        deployment: The deployment.
        quotas: Its quotas, in the deployment's own order, followed by learnt ones.
        cooldown: The last to end of the cooldowns that apply to it now, or None.
    """

    deployment: Deployment
    quotas: tuple[QuotaSnapshot, ...]
    cooldown: Cooldown | None


@runtime_checkable
class RateLimitStore(Protocol):
    """Keeps quotas, reservations and cooldowns. Implement it to keep them somewhere else.

    Every store promises:

    * **Atomicity.** A reserve takes all quotas of the first candidate with room, or changes nothing. Through
      reserves no window of a rolling quota ever holds more than its limit, whatever else uses the store.
    * **Sharing.** A quota belongs to the (provider, project, model) of a deployment: deployments that agree
      in these three share it, and must agree in its limits. If a limit has changed since the last run, the
      new one applies at once, and what was taken before is kept.
    * **Idempotence.** The second ``settle`` or ``release`` of a reservation changes nothing, nor does one of
      an unknown id.
    * **Order.** Calls on one reservation id take effect in the order in which they were made, *even if an
      earlier one was cancelled*: after a reserve that was cancelled and then released, nothing is taken.
    * **Expiry.** A reservation that is neither settled nor released in time keeps what it took and is
      forgotten: quota that may have been used is never given back.
    * **Bounded state.** Nothing grows with the number of requests served.

    Not promised: fairness between callers (the engine queues them), and that a snapshot is still true when it
    is read. Every method may raise :class:`~llm_router.errors.StoreError`, and answers or raises within the
    store's own timeout.
    """

    async def reserve(
        self, reservation_id: str, candidates: Sequence[Deployment], demand: Demand, ttl: float
    ) -> Decision:
        """Take ``demand`` from the first of ``candidates`` that has room in all its quotas.

        A candidate is refused while one of its scopes cools down, or one of its quotas lacks room. Where a
        half-open cooldown has ended, the request that is granted is its probe, and is told so: unless the
        cooldown is lifted, the scope then refuses all others for ``PROBE_TIME`` (60 s).

        Args:
            reservation_id: Chosen by the caller, and never used before.
            candidates: At most 128 deployments, best first (usually 8, more after the first were refused).
            demand: What to take. An amount of 0 always fits; nothing else fits a limit of 0.
            ttl: Seconds after which the reservation expires.
        """
        ...

    async def settle(self, reservation_id: str, used: Demand) -> None:
        """Replace the estimate of a reservation by what was used, as of the time it was taken.

        Use beyond the limit counts as well: the quota then stays closed for longer.
        """
        ...

    async def release(self, reservation_id: str) -> None:
        """Give back everything a reservation took, because nothing was sent."""
        ...

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Refuse a scope until the cooldown ends.

        Of two cooldowns of a scope the one that ends later applies; :meth:`Cooldown.lift` ends either.
        :meth:`Cooldown.retry` ends a half-open one now, keeps its strikes, and does nothing to others. A
        half-open cooldown that has ended is remembered for another ``STRIKES_KEPT`` (25 hours), unless it is
        lifted.

        The limits learnt with it apply for 24 hours, the lowest one for each metric; learning one again
        renews the time. They only ever lower a configured limit, and add a limit where none is configured.
        When a learnt limit is forgotten, nothing is refused because of it any more.
        """
        ...

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of ``deployments``, in their order, without changing anything."""
        ...

    async def aclose(self) -> None:
        """Release what the store holds open. May be called twice."""
        ...


@runtime_checkable
class Sharded(Protocol):
    """What a store also offers if it divides its deployments into shards.

    The deployments of one project lie in one shard. A reserve whose candidates all lie in one shard is one
    atomic step and one round trip; otherwise each run of candidates in the same shard is, in their order.
    """

    @property
    def shards(self) -> int:
        """The number of shards; 1 if the store is not divided."""
        ...

    def shard_of(self, deployment: Deployment) -> int:
        """Return the number of the shard of a deployment, from 0. It never changes."""
        ...


@runtime_checkable
class FrontingStore(Protocol):
    """What a store also offers if it stands in front of another store and takes over when that fails."""

    @property
    def behind(self) -> RateLimitStore:
        """The store behind it."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why it has taken over, or None while the store behind it answers."""
        ...
