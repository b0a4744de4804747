"""Open what a router sends through and keeps things in, unless it is given; and close what was opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from llm_router.caching.cache import CACHE, AnswerCache, Cache
from llm_router.conversations.base import HistoryStore
from llm_router.conversations.memory import MemoryHistory
from llm_router.conversations.stored import HISTORIES, HISTORY_BOUNDS, StoredHistory
from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.response import Response
from llm_router.engine.facts import FACT_BOUNDS, FACTS
from llm_router.engine.lines import LINE_BOUNDS, LINES
from llm_router.engine.pool_check import check_store
from llm_router.engine.reporting import Reporter
from llm_router.engine.resources import CALLERS, OWNER_BOUNDS, OWNERS
from llm_router.engine.shared_failures import FAILURE_BOUNDS, FAILURES
from llm_router.engine.totals import TOTALS, TOTALS_BOUNDS
from llm_router.engine.upstream import Upstream, Upstreams
from llm_router.providers.base import Provider
from llm_router.records.base import Bounds, RecordStore
from llm_router.records.urls import OpenedRecords
from llm_router.stores.base import RateLimitStore
from llm_router.stores.failover import FailoverStore, LocalShare, StoreFailurePolicy
from llm_router.stores.memory import MemoryStore
from llm_router.stores.urls import open_store

__all__ = ["Opened", "report_failures"]

_BOUNDS = {
    HISTORIES: HISTORY_BOUNDS,
    OWNERS: OWNER_BOUNDS,
    CALLERS: OWNER_BOUNDS,
    TOTALS: TOTALS_BOUNDS,
    FACTS: FACT_BOUNDS,
    LINES: LINE_BOUNDS,
    FAILURES: FAILURE_BOUNDS,
}
"""How much may be kept in the record stores that a router opens."""


class Opened:
    """What a router has opened, to be closed with it; what its user gave it stays the user's.

    Args:
        clock: Where time comes from.
        cache: Where answers are kept; None for nowhere.
    """

    def __init__(self, clock: Clock, cache: Cache | None) -> None:
        bounds: Mapping[str, Bounds] = _BOUNDS if cache is None else {**_BOUNDS, CACHE: cache.bounds}
        self._clock = clock
        self._records = OpenedRecords(bounds, _shared(clock))
        self._all: list[RateLimitStore | Provider | OpenedRecords | AnswerCache] = [self._records]

    def records(self, records: RecordStore | str | None, store: RateLimitStore | str | None) -> RecordStore:
        """Return the record store that was asked for: by default beside the quotas.

        Raises:
            ConfigError: The URL is wrong.
        """
        if records is None:
            return self._records.at(store if isinstance(store, str) else "memory://", "store")
        return self._records.at(records, "records") if isinstance(records, str) else records

    def histories(self, histories: HistoryStore | str | None) -> HistoryStore:
        """Return what keeps conversations: by default the memory of this process.

        Raises:
            ConfigError: The URL is wrong.
        """
        if histories is None or histories == "memory://":
            return MemoryHistory(clock=self._clock)
        if isinstance(histories, str):
            return StoredHistory(self._records.at(histories, "histories"))
        return histories

    def upstreams(
        self,
        provider: Provider | Mapping[str, Provider] | None,
        base_url: str | None,
        safety_settings: Mapping[str, str] | None,
    ) -> Upstreams:
        """Return the providers; make the Gemini adapter if none was given.

        Raises:
            ConfigError: The URL or the settings are wrong.
        """
        if provider is None:
            # Imported here, since a router for tests does without it: it takes a while.
            from llm_router.providers.gemini import GeminiProvider  # noqa: PLC0415

            provider = GeminiProvider(base_url=base_url, safety_settings=safety_settings)
            self._all.append(provider)
        return Upstreams(provider)

    def store(
        self, store: RateLimitStore | str | None, policy: StoreFailurePolicy, local_share: LocalShare
    ) -> RateLimitStore:
        """Open the store unless it was given; put a failover in front unless it cannot fail or has one.

        Raises:
            ConfigError: The URL is wrong, or what was given is not a store.
        """
        is_given = store is not None and not isinstance(store, str)
        if store is None or isinstance(store, str):
            store = open_store("memory://" if store is None else store, clock=_shared(self._clock))
        check_store(store)
        if not isinstance(store, MemoryStore | FailoverStore):
            store = FailoverStore(
                store,
                policy=policy,
                local_share=local_share,
                owns_store=not is_given,
                clock=self._clock,
            )
            is_given = False
        if not is_given:
            self._all.append(store)
        return store

    def cache(
        self,
        cache: Cache,
        upstreams: Mapping[str, Upstream],
        send: Callable[..., Awaitable[Response]],
        enter: Callable[[], object],
    ) -> AnswerCache:
        """Return what keeps the answers of ``send``.

        Args:
            cache: Where, and for how long.
            upstreams: The providers, whose answers are told from each other.
            send: Answers what is not there.
            enter: Raises if the router must not be used.

        Raises:
            ConfigError: The URL is wrong.
        """
        store = self._records.at(cache.url, "cache") if isinstance(cache.url, str) else cache.url
        places = {name: _place(each.provider) for name, each in upstreams.items()}
        made = AnswerCache(store, cache.ttl, send, enter, places, self._clock)
        self._all.insert(1, made)  # closed after what sends, and before the records
        return made

    async def aclose(self) -> None:
        """Close all of it, what was opened last first. May be called twice."""
        while self._all:
            await self._all.pop().aclose()


def report_failures(store: RateLimitStore, reporter: Reporter | None) -> Callable[[], None]:
    """Have it reported when the store fails and answers again; return how to stop that."""
    if reporter is None or not isinstance(store, FailoverStore):
        return lambda: None
    return store.watch(reporter.store_changed)


def _shared(clock: Clock) -> Clock | None:
    """Return the clock for what processes share: its own is the better one, such as Redis's its server's."""
    return None if isinstance(clock, SystemClock) else clock


def _place(provider: Provider) -> str:
    """Return what tells the answers of a provider from those of others, as far as it says."""
    kind = type(provider)
    return f"{kind.__module__}.{kind.__qualname__} {getattr(provider, 'place', '')}"
