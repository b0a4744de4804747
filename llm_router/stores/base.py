"""The port between the engine and whatever keeps the state of quotas."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Protocol, runtime_checkable

import attrs

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Scope
from llm_router.domain.limits import LimitRecord, LimitSource
from llm_router.domain.quota import Demand, Metric

__all__ = [
    "CHARGES_KEPT",
    "QUIET",
    "RECOUNT",
    "Decision",
    "DeploymentSnapshot",
    "ExternalStore",
    "FrontingStore",
    "QuotaSnapshot",
    "Ranking",
    "RateLimitStore",
    "Refusal",
    "Sharded",
    "Standing",
    "Taking",
    "innermost",
]

RECOUNT = "what was spent is being counted again"
"""The reason of a refusal because the store has lost something; see :class:`ExternalStore`."""

CHARGES_KEPT = 25 * 3600.0
"""Seconds for which the last charge of a process is remembered."""

QUIET = 1.0
"""Seconds for which a store that lost something grants nothing; see :class:`ExternalStore`."""


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
        since: When the record of ``deployment`` began, on which this grant was counted; 0 if the store cannot
            lose one. See :class:`ExternalStore`.
        lost: The candidates whose record is not the one the caller knows; each of them is also in
            ``refusals``. See :class:`ExternalStore`.
        reset_at: When the store last lost something (seconds since the Unix epoch); 0 if it never did. See
            :class:`ExternalStore`.
    """

    deployment: Deployment | None
    headroom: float = 1.0
    daily_headroom: float = 1.0
    refusals: tuple[Refusal, ...] = ()
    probes: tuple[Cooldown, ...] = ()
    lifts: int = 0
    since: float = 0.0
    lost: tuple[Deployment, ...] = ()
    reset_at: float = 0.0


@attrs.frozen
class Taking:
    """What one process took from a deployment at one time.

    Attributes:
        at: When, in seconds since the Unix epoch.
        used: How many requests and tokens.
    """

    at: float
    used: Demand


@attrs.frozen
class QuotaSnapshot:
    """One quota at one time.

    Attributes:
        metric: What is counted.
        limit: The limit in force, learnt or configured.
        used: Requests or tokens that were taken and have not come back.
        resets_at: When all of it will be back if nothing more is taken, in seconds since the Unix epoch.
        learnt: What was learnt of the limit, or None. It is in force unless the configuration allows less.
    """

    metric: Metric
    limit: int
    used: int
    resets_at: float
    learnt: LimitRecord | None = None

    def source_on(self, deployment: Deployment) -> LimitSource:
        """Return how the limit in force is known on a deployment."""
        configured = {quota.metric: quota for quota in deployment.quotas}.get(self.metric)
        if self.learnt is not None and (
            configured is None or configured.adaptive or self.limit < configured.limit
        ):
            return self.learnt.source
        if configured is not None and not configured.adaptive:
            return LimitSource.CONFIGURED
        return LimitSource.UNKNOWN


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
    * **Differing terms.** Deployments that share a quota and do not agree, as in two processes with different
      configurations, each decide by their own limit, on what all of them took. But a reserve or a charge,
      even if it is refused, puts the quota under the terms of its deployment (in SQLite for its process,
      and in the file once that changes what is taken). A shorter window forgets for good what only a longer
      one counts: who has the longer one may be granted as much again within it. Another rate of a steady
      quota drains the debt since its last change. Under another time zone what was taken ends with the day
      in which it was taken. Under another refill the most that may still count is carried over, and cannot
      be given back. A snapshot shows what a reserve under its terms would find, and changes nothing.
    * **Idempotence.** The second ``settle`` or ``release`` of a reservation changes nothing, nor does one of
      an unknown id.
    * **Order.** Calls on one reservation id take effect in the order in which they were made, *even if an
      earlier one was cancelled*: after a reserve that was cancelled and then released, nothing is taken, and
      the half-open cooldowns that it was to probe are soon due again.
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

    async def charge(
        self,
        source: str,
        sequence: int,
        deployment: Deployment,
        missing: Sequence[Taking],
        counted: Sequence[Taking] = (),
        since: float = 0.0,
    ) -> float:
        """Count what was taken without asking the store, or what it has lost, whether or not there is room.

        Each taking counts from its own time, as if it had been reserved then; one that would have come back
        by now counts nothing. Cooldowns do not matter. A quota may be overdrawn: it then stays closed for
        longer.

        Args:
            source: Names the process, and no other one ever.
            sequence: Increases with each charge of a source; a charge of a sequence that is not above the
                last one of that source and model scope changes nothing, so that it may be repeated. It is
                remembered for ``CHARGES_KEPT`` (25 hours).
            deployment: What was taken from.
            missing: The takings that the store was never told of, oldest first.
            counted: The takings that it counted in the record that began at ``since``, oldest first. It
                counts those again that it has lost meanwhile; a store that cannot lose any counts none.
            since: See there.

        Returns:
            When the present record of the deployment began; see :attr:`Decision.since`.
        """
        ...

    async def cool_down(self, cooldown: Cooldown) -> None:
        """Refuse a scope until the cooldown ends.

        Of two cooldowns of a scope the one that ends later applies; :meth:`Cooldown.lift` ends either.
        :meth:`Cooldown.retry` ends a half-open one now, keeps its strikes, and does nothing to others. A
        half-open cooldown that has ended is remembered for another ``STRIKES_KEPT`` (25 hours), unless it is
        lifted.

        The limits learnt with it apply for ``LEARNT_FOR`` (14 days), for each metric the one that was learnt
        last; :meth:`Cooldown.learn` only teaches limits. They lower a configured limit, replace one that is
        adaptive, and add a limit where none is configured. One that rises by itself does so for all callers.
        When a learnt limit is forgotten, nothing is refused because of it any more.
        """
        ...

    async def snapshot(self, deployments: Sequence[Deployment]) -> list[DeploymentSnapshot]:
        """Return the state of ``deployments``, in their order, without changing anything.

        That is so also where their quotas are under other terms now; see "Differing terms" above.
        """
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
class ExternalStore(Protocol):
    """What a store also offers if its state lies outside this process, where it may be lost.

    A server may be emptied, evict keys, or be replaced by a replica that misses the last writes; a file may
    be deleted. So the *record* of each (provider, project, model) knows when it began: it is complete from
    then on, and of what was counted before only a part may be left. The number changes when the record is
    made anew, and when the store notices that it may have lost something, at the next call of any process.

    A caller that knows what it has taken itself puts the records that it knows into :attr:`known`. A reserve
    then refuses a candidate whose record began at another time (``retry_at`` is now), names it in
    :attr:`Decision.lost`, and counts nothing of it, so that the caller can :meth:`RateLimitStore.charge` its
    takings and ask again. For ``QUIET`` (1 s) after the store lost something, a reserve grants nothing that
    the loss concerns, so that the processes that call at all charge their takings before any of them goes on.
    All these refusals give :data:`RECOUNT` as their reason.
    """

    known: MutableMapping[Scope, float]
    """Filled by the caller: when the record of a model's scope began. Other scopes are not checked."""

    async def announce(self, source: str) -> int:
        """Record that a process is alive; return how many were in the last minute, itself included.

        It writes, so its success shows that the store accepts writes.

        Args:
            source: Names the process, and no other one ever.
        """
        ...

    async def advice(self) -> list[str]:
        """Return what in the setup of the server or file endangers the count: one sentence each."""
        ...


@attrs.frozen
class Standing:
    """One process among those that share a store.

    Attributes:
        count: How many were alive in the last minute, itself included.
        rank: Its place among them, from 0, which no other one has; None if the store does not know.
    """

    count: int
    rank: int | None = None


@runtime_checkable
class Ranking(Protocol):
    """What an :class:`ExternalStore` also offers if it puts the processes in an order.

    By their ranks they can divide a quota that is smaller than their number, each on its own.
    """

    async def standing(self, source: str) -> Standing:
        """Announce a process, as :meth:`ExternalStore.announce` does; return its place among the others."""
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


def innermost(store: RateLimitStore) -> RateLimitStore:
    """Return the store that keeps the quotas: the one behind, if another one stands in front of it."""
    return store.behind if isinstance(store, FrontingStore) else store
