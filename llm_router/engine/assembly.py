"""Assemble an engine: what sends, and everything beside it that shares its pool, its store and its clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import attrs

from llm_router.domain.clock import Clock
from llm_router.domain.deployment import Deployment
from llm_router.domain.pacing import Pacing
from llm_router.domain.status import CacheSavings
from llm_router.engine.explaining import Explainer
from llm_router.engine.extensions import CheckedStrategy
from llm_router.engine.facts import SharedFacts
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.gate import DispatchGate
from llm_router.engine.judging import Judge
from llm_router.engine.keys import KeyManager
from llm_router.engine.lines import SharedLines
from llm_router.engine.pacing import Pacer
from llm_router.engine.pool import Pool
from llm_router.engine.project_limits import ProjectSearch
from llm_router.engine.queries import Querier
from llm_router.engine.reloading import Reloader, Terms, longest_guard
from llm_router.engine.reporting import Reporter
from llm_router.engine.reserving import Selector
from llm_router.engine.resources import Resources
from llm_router.engine.retry import RetryPolicy
from llm_router.engine.sending import Sender
from llm_router.engine.shared_failures import SharedFailures
from llm_router.engine.throttle import Throttle
from llm_router.engine.timing import Deadlines
from llm_router.engine.totals import Totals
from llm_router.engine.upstream import Preparation, Upstreams
from llm_router.providers.base import QueriedProvider, RelayingProvider
from llm_router.records.base import RecordStore
from llm_router.records.memory import MemoryRecords
from llm_router.stores.base import RateLimitStore, Sharded
from llm_router.strategies.base import SelectionStrategy
from llm_router.strategies.least_loaded import LeastLoaded
from llm_router.strategies.round_robin import RoundRobin
from llm_router.strategies.weighted import Weighted

__all__ = ["Engine", "assemble"]


@attrs.frozen(eq=False)
class Engine:
    """The parts of an engine that are used from outside.

    Attributes:
        sender: Sends, streams and relays.
        querier: Embeds, counts tokens, and lists models.
        explainer: Explains what a send would decide.
        keys: Reports the statuses of the keys, and lifts and disables them.
        reloader: Brings it to other terms.
        totals: Counts what each key does; None if that is off.
        relaying: The provider that exchanges are relayed to; None if no one can.
    """

    sender: Sender
    querier: Querier
    explainer: Explainer
    keys: KeyManager
    reloader: Reloader
    totals: Totals | None
    relaying: RelayingProvider | None


def assemble(
    terms: Terms,
    upstreams: Upstreams,
    store: RateLimitStore,
    records: RecordStore,
    clock: Clock,
    *,
    strategy: SelectionStrategy | None,
    reporter: Reporter | None,
    max_per_second: float | None,
    weights: Mapping[str, float],
    pacing: Pacing | None,
    with_totals: bool,
    savings: Callable[[], Awaitable[CacheSavings | None]] | None,
) -> Engine:
    """Assemble an engine of arguments that have been checked. Nothing of it runs yet.

    Args:
        terms: What can be changed later.
        upstreams: The providers.
        store: Keeps the quotas.
        records: Keeps which project owns what, and what each key did.
        clock: Where time comes from.
        strategy: Orders the deployments inside a tier; None for the least loaded first.
        reporter: Reports what happens; None without observers.
        max_per_second: Most calls per second; None for no bound.
        weights: Of tenants that have another one than 1.
        pacing: Spreads the requests per day over the day; None for not.
        with_totals: Whether what each key does is counted.
        savings: Asks what a cache has saved; None if there can be none.
    """
    used = upstreams.of(terms.deployments)
    relaying = upstreams.relaying()
    pool = Pool(terms.deployments, used, store if isinstance(store, Sharded) else None)
    deadlines = Deadlines(clock)
    checked = _checked(strategy)
    selector = Selector(
        store,
        pool,
        checked,
        clock,
        deadlines,
        DispatchGate(clock, longest_guard(terms.deployments)),
        None if max_per_second is None else Throttle(max_per_second),
        reporter,
        weights,
        None if pacing is None else Pacer(pacing, clock),
    )
    policy = RetryPolicy(terms.max_retries, terms.base_backoff)
    judge = Judge(policy, pool, store, clock, reporter, selector.look_again)
    facts = SharedFacts(judge.learner.suspicions, records, clock)
    lines = SharedLines(selector.queued, records)
    failures = SharedFailures(judge.failures, records, clock)
    totals = _totals(facts, lines, failures, deadlines, selector) if with_totals else None
    sender = Sender(
        FallbackOrders(pool, terms.workloads),
        Preparation((upstream.provider for upstream in used.values()), ProjectSearch(pool, store, deadlines)),
        selector,
        judge,
        policy,
        clock,
        deadlines,
        terms.max_wait,
        reporter=reporter,
        resources=Resources(records),
        not_relaying=upstreams.others_than(relaying),
        totals=totals,
    )
    keys = KeyManager(
        pool,
        terms.inactive,
        store,
        selector,
        upstreams.known.values(),
        clock,
        sender.enter,
        reporter,
        failures,
        facts,
        totals,
        lines,
        savings,
    )
    return Engine(
        sender,
        Querier(sender, relaying if isinstance(relaying, QueriedProvider) else None, pool),
        Explainer(sender, store, checked, pool),
        keys,
        Reloader(terms, pool, upstreams, sender, keys),
        totals,
        relaying,
    )


def _totals(
    facts: SharedFacts,
    lines: SharedLines,
    failures: SharedFailures,
    deadlines: Deadlines,
    selector: Selector,
) -> Totals:
    """Return what counts what each key does, and tells other processes what there is to know here."""
    records = facts.records

    async def tell(counted: Iterable[Deployment]) -> None:
        await facts.publish(counted)
        await lines.publish()
        await failures.publish()

    totals = Totals(records, facts.clock, tell, lambda: lines.is_busy or failures.is_busy)
    deadlines.on_adopt.append(totals.enter_loop)
    if not isinstance(records, MemoryRecords):  # of which no other process would hear
        selector.queued.on_enter = failures.log.on_note = totals.wake
    return totals


def _checked(strategy: SelectionStrategy | None) -> SelectionStrategy:
    """Return the strategy to use; the orders of a user's own are checked, those of the library are not."""
    if strategy is None or type(strategy) in (LeastLoaded, RoundRobin, Weighted):
        return strategy or LeastLoaded()
    return CheckedStrategy(strategy)
