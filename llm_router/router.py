"""The router: the one object that users hold."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, get_args
from weakref import WeakMethod

import anyio
import attrs

from llm_router.building.opening import Opened, report_failures
from llm_router.building.options import RouterOptions
from llm_router.building.origin import Origin, read_again, watch_of
from llm_router.caching.cache import AnswerCache, Cache, savings_in
from llm_router.conversations.base import HistoryStore
from llm_router.conversations.calling import CallingSend
from llm_router.conversations.conversation import HISTORY_TOKENS, Conversation, Conversations
from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.deployment import Deployment
from llm_router.domain.exchange import Exchange
from llm_router.domain.explanation import Explanation
from llm_router.domain.numbers import real
from llm_router.domain.options import QueryOptions, RelayOptions, SendOptions
from llm_router.domain.pacing import Pacing
from llm_router.domain.queries import Embeddings, ModelList
from llm_router.domain.quota import GUARD
from llm_router.domain.reload import ReloadReport
from llm_router.domain.request import Request
from llm_router.domain.response import Response
from llm_router.domain.status import CacheSavings, Health, KeyStatus
from llm_router.engine.argument_check import (
    check_files,
    check_providers,
    check_types,
    check_workloads,
    deployments_in,
    mapping,
)
from llm_router.engine.assembly import assemble
from llm_router.engine.pool_check import (
    check_deployments,
    check_numbers,
    check_pacing,
    check_policy,
    check_weights,
)
from llm_router.engine.relaying import Relay
from llm_router.engine.reloading import Terms
from llm_router.engine.reporting import reporter_for
from llm_router.engine.requests import check_request, check_wait, unknown_option
from llm_router.engine.sending import estimate
from llm_router.engine.streaming import Stream
from llm_router.errors import ConfigError, InvalidRequestError
from llm_router.observe.base import RouterObserver
from llm_router.providers.base import Provider
from llm_router.records.base import RecordStore
from llm_router.records.memory import MemoryRecords
from llm_router.stores.base import RateLimitStore
from llm_router.stores.failover import LocalShare, StoreFailurePolicy
from llm_router.strategies.base import SelectionStrategy

if TYPE_CHECKING:
    from llm_router.config import ConfigSource, ConfigWatch, Settings

__all__ = ["Router", "RouterOptions"]

# The configuration and the Gemini adapter are imported where they are used: they are an eighth of the time
# that importing the library takes, and a router built from values, or for tests, needs neither.

_log = logging.getLogger("llm_router")


class Router:
    """Sends prompts through a pool of keys and models so that no quota is broken and none is left unused.

    A router works on one event loop, and after that is closed perhaps on another. Any number of tasks of the
    loop may share it. Routers are independent of each other unless they share a store. Before the first send
    the providers prepare: for Gemini, a thread imports the SDK, which takes about a second.

    Args:
        deployments: What to send through; at least one.
        store: Keeps the quotas: a store (which the caller closes), a URL for
            :func:`~llm_router.open_store`, or None for the memory of this process. A FailoverStore is
            used as it is, with its own policy and share.
        strategy: Orders the deployments inside a tier; least-loaded by default.
        provider: Sends the requests: one adapter for all keys (which the caller closes), adapters by the name
            that keys give as their ``provider``, or None for Gemini through google-genai.
        clock: Where time comes from; the machine's clock by default.
        workloads: From lightest to heaviest; on fallback, neighbours are tried first.
        inactive: Deployments that are only shown in statuses.
        max_retries: Most attempts after the first.
        base_backoff: Upper bound of the first backoff, in seconds.
        max_wait: Default of the option of :meth:`send`, in seconds; infinity for as long as it takes.
        on_store_failure: What to do while the store fails: ``"local"`` goes on with this process's share of
            every quota, ``"closed"`` answers with unsuccessful responses, ``"open"`` goes on without limits.
        local_share: That share, above 0 and at most 1; ``"auto"`` is one over the number of processes that
            used the store in the last minute.
        max_requests_per_second: Most calls that this process sends per second; None for no bound. A send
            waits for its turn for as long as its ``max_wait`` and ``timeout`` together; one whose turn does
            not come by then is answered at once.
        safety_settings: Passed on to the Gemini adapter: category → threshold, over ``BLOCK_NONE`` in the
            four categories of the Gemini API; ``{}`` for Google's own defaults.
        base_url: Passed on to the Gemini adapter: another server for the Gemini API, such as the emulator.
        histories: Keeps conversations: a store of them, a URL as for ``store`` (SQLite: a file beside it), or
            None for the memory of this process.
        records: Keeps which project a file, a cached content or an interaction belongs to, and what each key
            did by day: a record store (which the caller closes), a URL as for ``store`` (SQLite: a file
            beside it), or None for where ``store`` is, if that is a URL, or else the memory of this process.
        totals: Whether what each key does is counted, by day, for statuses.
        cache: Where answers are kept, to be given again to the same request: a :class:`~llm_router.Cache`, or
            a URL as for ``store`` (for an hour, at most 64 MiB); None for nowhere. Whoever sends the same
            request gets the same answer, whatever the ``metadata``. See :meth:`send`.
        history_tokens: Tokens of history sent along, per workload; ``""`` is for conversations without one.
        observers: What is given an event for each thing that happens; see :mod:`llm_router.observe`. The
            caller closes them, if they need it.
        tenant_weights: Of tenants that are to get more or less than others, whose weight is 1: where those
            of weight 1 and 3 both wait, the second gets three times as many tokens.
        rpd_pacing: Spreads the requests per day of each deployment over the day; None (the default) lets them
            be spent at any time. What is kept for later is ``paced`` in the statuses of this router.

    Raises:
        ConfigError: There is no deployment, two have the same key and model or contradict each other, a
            workload is not listed, a number or ``base_url`` is wrong, a provider has no adapter, or an
            argument is of a wrong type. Nothing has been opened then.
    """

    def __init__(
        self,
        deployments: Iterable[Deployment],
        *,
        store: RateLimitStore | str | None = None,
        strategy: SelectionStrategy | None = None,
        provider: Provider | Mapping[str, Provider] | None = None,
        clock: Clock | None = None,
        workloads: Sequence[str] = ("light", "medium", "heavy"),
        inactive: Iterable[Deployment] = (),
        max_retries: int = 3,
        base_backoff: float = 0.5,
        max_wait: float = 0.0,
        on_store_failure: StoreFailurePolicy = "local",
        local_share: LocalShare = "auto",
        max_requests_per_second: float | None = None,
        safety_settings: Mapping[str, str] | None = None,
        base_url: str | None = None,
        histories: HistoryStore | str | None = None,
        records: RecordStore | str | None = None,
        totals: bool = True,
        cache: Cache | str | None = None,
        history_tokens: Mapping[str, int] | None = None,
        observers: Iterable[RouterObserver] = (),
        tenant_weights: Mapping[str, float] | None = None,
        rpd_pacing: Pacing | None = None,
    ) -> None:
        active = deployments_in("deployments", deployments)
        shown_only = deployments_in("inactive", inactive)
        workloads = check_workloads(workloads)
        check_deployments(active, workloads)
        check_types(strategy, provider, clock, histories, records, base_url, safety_settings)
        budgets = mapping("history_tokens", history_tokens, "{'light': 8_000}")
        check_numbers(
            max_retries=max_retries,
            base_backoff=base_backoff,
            max_wait=max_wait,
            local_share=local_share,
            max_requests_per_second=max_requests_per_second,
            history_tokens=budgets,
            workloads=workloads,
        )
        check_policy(on_store_failure, get_args(StoreFailurePolicy))
        weights = check_weights(mapping("tenant_weights", tenant_weights, "{'acme': 3}"))
        check_pacing(rpd_pacing, workloads)
        clock = clock or SystemClock()
        reporter = reporter_for(observers, clock)
        caching = Cache(cache) if cache is not None and not isinstance(cache, Cache) else cache
        self._opened = Opened(clock, caching)
        self.records = self._opened.records(records, store)
        """Keeps which project owns what, and what each key did."""
        kept_histories = self._opened.histories(histories)
        known = self._opened.upstreams(provider, base_url, safety_settings)
        upstreams = known.of(active)
        kept_quotas = self._opened.store(store, on_store_failure, local_share)
        self._unwatch = report_failures(kept_quotas, reporter)
        engine = assemble(
            Terms(active, shown_only, workloads, max_retries, real(base_backoff), check_wait(max_wait)),
            known,
            kept_quotas,
            self.records,
            clock,
            strategy=strategy,
            reporter=reporter,
            max_per_second=max_requests_per_second,
            weights=weights,
            pacing=rpd_pacing,
            with_totals=totals,
            savings=None if caching is None and isinstance(self.records, MemoryRecords) else self._saved,
        )
        self._sender = engine.sender
        self._querier = engine.querier
        self._explainer = engine.explainer
        self._reloader = engine.reloader
        self._totals = engine.totals
        self._relaying = engine.relaying
        self.keys = engine.keys
        """Reports the statuses of the keys."""
        self._cache: AnswerCache | None = None
        self._send: Callable[..., Awaitable[Response]] = self._sender.send
        if caching is not None:
            self._cache = self._opened.cache(caching, upstreams, self._sender.send, self._sender.enter)
            self._send = self._cache.send
        self._reloading = anyio.Lock()
        self._origin: Origin | None = None
        self._watcher: ConfigWatch | None = None
        self._conversations = Conversations(
            self.send,
            self.stream,
            partial(estimate, next(iter(upstreams.values())), validate=False),
            kept_histories,
            {**HISTORY_TOKENS, **budgets},
            self._sender.enter,
        )

    async def _saved(self) -> CacheSavings | None:
        """Return what the router's cache has saved, or that of others beside its quotas."""
        return await (savings_in(self.records) if self._cache is None else self._cache.savings())

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str] = "keys.json",
        *,
        env: Mapping[str, str] | None = None,
        env_file: str | os.PathLike[str] | None = ".env",
        guard: float = GUARD,
        store: RateLimitStore | str | None = None,
        provider: Provider | Mapping[str, Provider] | None = None,
        watch: bool = False,
        **options: Unpack[RouterOptions],
    ) -> Self:
        """Make a router from keys.json, ``.env`` and the environment.

        Args:
            path: The keys file.
            env: The environment; ``os.environ`` by default.
            env_file: A file of further variables, over which the environment wins; looked for beside the keys
                file, then in the working directory. None for no such file.
            guard: Seconds added to the windows of quotas: the longest delay expected between taking quota
                and the provider's counting it. Raise it where hundreds of requests start at once.
            store: As for :class:`Router`; by default what the environment names, or else memory.
            provider: As for :class:`Router`.
            watch: Whether to :meth:`reload` whenever ``path`` or ``env_file`` changes, from the first use of
                the router (or ``async with``) until it is closed. What is broken then is a warning in the
                log, and changes nothing. Needs watchfiles (the extra ``watch``).
            options: As for :class:`Router`; they win over file and environment.

        Raises:
            ConfigError: Something is wrong; the message names the file, the entry and the remedy.
        """
        from llm_router.config import ConfigSource, Environ  # noqa: PLC0415

        check_files(path, env, env_file)
        check_providers(provider)
        env = None if env is None else Environ(env)  # its repr shows no values in a traceback
        source = ConfigSource(
            path=Path(path),
            env=env,
            env_file=env_file,
            guard=guard,
            store_needed=store is None,
            base_url_needed=provider is None and "base_url" not in options,
            providers=("gemini", *provider) if isinstance(provider, Mapping) else ("gemini",),
        )
        return cls.from_settings(
            source.load(), source=source, watch=watch, store=store, provider=provider, **options
        )

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        source: ConfigSource | None = None,
        watch: bool = False,
        store: RateLimitStore | str | None = None,
        provider: Provider | Mapping[str, Provider] | None = None,
        **options: Unpack[RouterOptions],
    ) -> Self:
        """Make a router from loaded settings; ``options`` win over them.

        Args:
            settings: The settings.
            source: Where they were loaded from, if :meth:`reload` is to read them again.
            watch: As for :meth:`from_config`; it takes a source.
            store: As for :class:`Router`; by default what the settings name.
            provider: As for :class:`Router`.
            options: As for :class:`Router`.

        Raises:
            ConfigError: As for :class:`Router`; or to watch, there is no source, or no watchfiles.
        """
        watcher = watch_of(source, options.get("clock")) if watch else None
        defaults = RouterOptions(
            workloads=settings.workloads,
            inactive=settings.inactive,
            max_retries=settings.max_retries,
            base_backoff=settings.base_backoff,
            max_wait=settings.max_wait,
            base_url=settings.base_url,
        )
        merged: RouterOptions = {**defaults, **options}
        router = cls(
            settings.deployments,
            store=settings.store_url if store is None else store,
            provider=provider,
            **merged,
        )
        if source is not None:
            router._origin = Origin(source, settings, frozenset(options))
        if watcher is not None:
            watcher.find_reload = WeakMethod(router.reload)
            router._watcher = watcher
            router._sender.deadlines.on_adopt.append(watcher.start)
        return router

    async def send(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Response:
        """Send a prompt through the best deployment that has room for it.

        Python functions among the ``tools`` of a ``config`` are called for the model, and their results sent
        back, until it answers: each time with a request, quota, ``timeout`` and ``max_wait`` of its own. What
        a function raises is its result, for the model to read; one that is not ``async`` runs in a thread. An
        answer that calls something else than these functions is returned, as is the one after
        ``automatic_function_calling.maximum_remote_calls`` (10) others; with ``disable`` set, every answer.

        With a ``cache``, the same request (contents, config, wishes for model and workload, safety) is
        answered from it (``response.cached``), and by the call of the same one that is under way. Answers are
        kept if no temperature above 0 is stated, no tools are declared, and nothing but text is sent.

        Args:
            prompt: A string, contents as google-genai takes them, or a :class:`Request`; ``contents`` is
                another name of it.
            options: Any of these, see :class:`~llm_router.SendOptions`:

                * ``workload``: the workload wished for; None (the default) for any.
                * ``model_preference``, or ``model``: the model wished for; None for any.
                * ``max_output_tokens``: upper bound of the answer, in tokens.
                * ``system_instruction``: the system instruction.
                * ``temperature``: sampling temperature.
                * ``config``: a ``GenerateContentConfig`` or its dict; the options above win over it.
                * ``safety_settings``: category → threshold, over those of the router; ``{}`` for those of the
                  provider alone.
                * ``fallback``: how far from the wish it may go: to ``"any"`` deployment (the default), to the
                  preferred ``"model"`` on any workload, or nowhere (``"none"``).
                * ``timeout``: seconds for all attempts together, not counting the wait for capacity; 60 by
                  default, None (or more than a year) for no bound.
                * ``max_wait``: most seconds to wait for capacity, infinity (or more than a year) for a year;
                  None for the router's default. Where nothing will have room in time, also because of those
                  that wait already, the answer comes at once and says when it could have been.
                * ``cache``: False to neither look into the cache nor keep the answer there; ``"always"`` to
                  do both whatever the request has.
                * ``metadata``: words to find the request by, such as ``{"tenant": "acme"}``, in the attempts
                  of the response, in events and in metrics; the provider does not see them.
                * ``urgency``: where it waits, if it has to: ``"interactive"`` (the default) requests go
                  before ``"batch"`` ones, which keep a fifth of the grants.
                * ``tenant``: whose send it is, by default the ``tenant`` of the metadata. Those that wait
                  get equal shares of the tokens, or by ``tenant_weights``. Both hold among requests that wait
                  in this process with the same ``workload``, ``model_preference`` and ``fallback``.

        Returns:
            The response. Whatever fails between router and provider is in it, and is not raised.

        Raises:
            UnknownWorkloadError: The workload is not configured.
            UnknownModelError: No deployment serves the model.
            InvalidRequestError: Another argument is wrong.
            RouterClosedError: The router is closed, or was before the request was sent.
            RouterLoopError: The router works on another event loop, which is still open.
            ExtensionError: Your own provider or strategy failed. Quota that it may have used counts as used.
        """
        if "config" in options or not isinstance(prompt, str):
            calling = CallingSend.of(prompt, options)
            if calling is not None:
                return await calling.send(self._sender.send)
        return await self._send(prompt, **options)

    def stream(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Stream:
        """Send a prompt as :meth:`send` does, and read the answer while it comes.

        ::

            async with router.stream("Tell me a story", workload="light") as stream:
                async for chunk in stream:
                    print(chunk.text, end="")

        Args:
            prompt: As for :meth:`send`.
            options: As for :meth:`send`, except that ``timeout`` bounds all attempts until the first piece
                has come, and then each further piece.

        Returns:
            The stream: an asynchronous context manager. See :class:`~llm_router.Stream` for how to read it.

        Raises, when the stream is entered:
            UnknownWorkloadError: The workload is not configured.
            UnknownModelError: No deployment serves the model.
            InvalidRequestError: Another argument is wrong.
            RouterClosedError: The router is closed.
            RouterLoopError: The router works on another event loop, which is still open.

        Raises, then or while it is read:
            ExtensionError: As for :meth:`send`.
        """
        calling = CallingSend.of(prompt, options)
        if calling is not None:
            return Stream(calling.stream(self._open_stream))
        return self._open_stream(prompt, **options)

    def _open_stream(self, prompt: Any, **options: Unpack[SendOptions]) -> Stream:
        return Stream(self._sender.stream(prompt, **options))

    def relay(self, exchange: Exchange, **options: Unpack[RelayOptions]) -> Relay:
        """Forward an HTTP exchange byte for byte through the best deployment that has room for it.

        It is what a drop-in client and a gateway are made of. The model that the exchange names is kept, and
        any key that serves it may be used; ``workload:heavy`` in place of a model's name stands for whatever
        serves that workload, and then only that name is changed. Embeddings, and whatever names a cache, a
        file, an earlier interaction or a thought signature, never change model.

        Args:
            exchange: The request, without credentials.
            options: Any of these:

                * ``workload``, ``model_preference``, ``max_wait``, ``metadata``, ``urgency``, ``tenant``: as
                  for :meth:`send`; they win over what the exchange names.
                * ``fallback``: as for :meth:`send`; by default ``"model"`` where a model is named.
                * ``timeout``: seconds until the answer begins, and then for each further piece of it.

        Returns:
            The answer: an asynchronous context manager. See :class:`~llm_router.Relay` for how to read it.

        Raises:
            InvalidRequestError: No provider of this router relays exchanges, or the exchange is not one of
                its API: an unknown path (UnknownPathError), or a body that it cannot be meant with it.

        Raises, when it is entered:
            UnknownWorkloadError: As for :meth:`send`.
            UnknownModelError: As for :meth:`send`.
            InvalidRequestError: As for :meth:`send`.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.

        Raises, while it is read:
            SendError: The answer broke off.
        """
        provider = self._relaying
        if provider is None:
            raise InvalidRequestError("no provider of this router relays HTTP exchanges: use GeminiProvider")
        if not options.keys() <= RelayOptions.__annotations__.keys():
            raise unknown_option("relay", options, RelayOptions.__annotations__)
        relayed = provider.read_exchange(exchange)
        return Relay(
            partial(self._sender.begin_relay, relayed, **options), self._sender.relay, provider, exchange
        )

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str | None = None,
        task_type: str | None = None,
        title: str | None = None,
        output_dimensionality: int | None = None,
        **options: Unpack[QueryOptions],
    ) -> Embeddings:
        """Embed texts, a hundred with each request against the quota, all with the same model.

        Args:
            texts: A string, or any number of them.
            model: The model; by default the first one of the pool that embeds and has room.
            task_type: What the vectors are for, such as ``RETRIEVAL_DOCUMENT``.
            title: The title of the documents that the texts are of.
            output_dimensionality: The length of the vectors, if the model lets one choose.
            options: ``timeout`` (for each request), ``max_wait``, ``metadata``, ``urgency`` and ``tenant``,
                as for :meth:`send`.

        Returns:
            The vectors, one for each text, in order.

        Raises:
            InvalidRequestError: There is nothing to embed, no model of the pool embeds, or no provider of the
                router can be asked.
            UnknownModelError: No deployment serves the model.
            EmbeddingError: Some of the texts could not be embedded; the error has the vectors of the others.
            SendError: None could be embedded; as QuotaExhaustedError it says when to come back.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        given = {"task_type": task_type, "title": title, "output_dimensionality": output_dimensionality}
        config = {name: value for name, value in given.items() if value is not None}
        return await self._querier.embed(texts, model, config, options)

    async def count_tokens(
        self,
        prompt: Any,
        *,
        model: str | None = None,
        workload: str | None = None,
        system_instruction: Any = None,
        **options: Unpack[QueryOptions],
    ) -> int:
        """Have the provider count the tokens of a prompt, which takes no quota.

        Args:
            prompt: As for :meth:`send`.
            model: The model whose tokens are counted; by default the first one of the pool that can.
            workload: The workload of that model.
            system_instruction: As for :meth:`send`.
            options: ``timeout``, ``max_wait``, ``metadata``, ``urgency`` and ``tenant``, as for :meth:`send`.

        Raises:
            InvalidRequestError: An argument is wrong.
            UnknownModelError: No deployment serves the model.
            SendError: The tokens could not be counted.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        request = prompt if isinstance(prompt, Request) else Request(contents=prompt)
        if system_instruction is not None:
            request = attrs.evolve(request, system_instruction=system_instruction)
        check_request(request)
        return await self._querier.count_tokens(request, model, workload, options)

    async def models(self, **options: Unpack[QueryOptions]) -> ModelList:
        """Ask the provider which models it serves to each project of the pool, which takes no quota.

        Args:
            options: ``timeout``, ``max_wait``, ``metadata``, ``urgency`` and ``tenant``, as for :meth:`send`.

        Raises:
            SendError: No project could be asked.
            InvalidRequestError: No provider of this router can be asked.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        return await self._querier.models(options)

    async def send_one_shot(self, *, prompt: Any, **options: Unpack[SendOptions]) -> Response:
        """Send one prompt; the same as :meth:`send`."""
        return await self.send(prompt, **options)

    def conversation(
        self, conversation_id: str, *, history: Any = None, **options: Unpack[SendOptions]
    ) -> Conversation:
        """Return a handle on a conversation, new or known.

        Args:
            conversation_id: Names the history.
            history: Contents to begin with, as google-genai takes them, if nothing is remembered.
            options: Defaults for every turn, as for :meth:`send`; usually ``system_instruction`` and
                ``workload``. A turn may override them.

        Raises:
            InvalidRequestError: The id is no string, or empty.
        """
        return Conversation(self._conversations, conversation_id, options, history)

    async def send_chat(self, *, conv_id: str, prompt: Any, **options: Unpack[SendOptions]) -> Response:
        """Send the next turn of the conversation ``conv_id``; ``options`` are those of :meth:`send`."""
        return await self.conversation(conv_id).send(prompt, **options)

    async def explain(self, prompt: Any = None, **options: Unpack[SendOptions]) -> Explanation:
        """Explain what :meth:`send` would decide now: which deployment it would take, and why not the others.

        Nothing is sent, no quota is taken, and no turn is used up: without requests in between, ``send`` then
        takes what is explained. That is so for the first attempt, with these exceptions: a strategy of your
        own that cannot be copied (``copy.deepcopy``) is asked itself; where a store has several shards, each
        send draws one at random; beyond 128 deployments, only those that would be asked first are explained;
        requests that wait in line go first; and neither a lift that this process has not heard of is seen,
        nor a cooldown beneath a quarantine that the send would end.

        What this process knows (turns, failures, circuit breakers) is its own, so another process may decide
        otherwise. Quotas, limits and cooldowns are those of the store. Unlike a send, it looks at every
        deployment, which takes about 20 ms for a thousand.

        Args:
            prompt: As for :meth:`send`.
            options: As for :meth:`send`; ``timeout``, ``max_wait``, ``metadata``, ``urgency`` and ``tenant``
                change nothing.

        Returns:
            The tiers with their candidates, best first: rank, quotas, and what excludes them. It prints as a
            short text.

        Raises:
            UnknownWorkloadError: As for :meth:`send`.
            UnknownModelError: As for :meth:`send`.
            InvalidRequestError: As for :meth:`send`.
            RouterClosedError: The router is closed.
            RouterLoopError: As for :meth:`send`.
            ExtensionError: As for :meth:`send`.
            StoreError: The store failed.
        """
        return await self._explainer.explain(prompt, **options)

    async def health_check(self) -> Health:
        """Report whether a send has a chance, and what is wrong. Never raises for a failing store.

        Raises:
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        return await self.keys.health()

    async def get_all_key_statuses(self, *, days: int = 1) -> list[KeyStatus]:
        """Return the status of every deployment; see :class:`KeyStatus`.

        Args:
            days: For how many days it has the totals, today included; 35 at most.

        Raises:
            InvalidRequestError: It is not a number of days.
            StoreError: The store failed.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        return await self.keys.get_all_key_statuses(days=days)

    async def cache_savings(self) -> CacheSavings:
        """Return how many requests and tokens answers from the cache have saved, over all that share it.

        Raises:
            StoreError: The cache failed.
            RouterClosedError: As for :meth:`send`.
            RouterLoopError: As for :meth:`send`.
        """
        self._sender.enter()
        return {"requests": 0, "tokens": 0} if self._cache is None else await self._cache.savings()

    async def reload(
        self,
        deployments: Iterable[Deployment] | None = None,
        *,
        inactive: Iterable[Deployment] | None = None,
        workloads: Sequence[str] | None = None,
    ) -> ReloadReport:
        """Go by a configuration that has changed, without losing a request or a count.

        A router made by :meth:`from_config` reads its files and the environment again: keys and models, their
        limits, priorities, weights, workloads, projects, providers and secrets, and ``LLM_MAX_RETRIES``,
        ``LLM_BASE_BACKOFF_MS`` and ``LLM_MAX_WAIT_S``; options that were passed to :meth:`from_config` still
        win. Any other router is given its deployments anew.

        All of it changes in one step, whether or not the store answers. Requests that were sent end on the
        deployment that they are on; what waits for quota looks at once for what there is now. Requests that
        begin after that use no key that is gone, and no secret that was replaced. What is known of a
        deployment (failures, cooldowns, what was learnt) goes on, unless its secret, project or provider is
        another one; counts are the store's. The verdict on a secret that was replaced ends: now, or if the
        store fails, with a request to its key.

        The store, the base URL and the adapters of providers cannot change.

        Args:
            deployments: What to send through from now on; None to read the files again.
            inactive: Deployments that are only shown, beside ``deployments``; None for the same as before.
            workloads: From lightest to heaviest, beside ``deployments``; None for the same as before.

        Returns:
            What has changed. If anything has, it is logged at INFO, and observers are given a ``Reloaded``
            event.

        Raises:
            ConfigError: A file is broken, or something has changed that cannot; the message says what.
                Nothing has changed then, and the router goes on as before.
            RouterClosedError: The router is closed.
            RouterLoopError: As for :meth:`send`.
        """
        self._sender.enter()
        async with self._reloading:
            if deployments is None:
                if inactive is not None or workloads is not None:
                    raise ConfigError("inactive and workloads belong to deployments: pass these, too")
                settings, terms = await read_again(self._origin, self._reloader.terms)
            else:
                settings, terms = None, self._reloader.terms.with_pool(deployments, inactive, workloads)
            changes = await asyncio.to_thread(self._reloader.compare, terms)
            self._sender.check_open()  # it may have been closed meanwhile
            self._reloader.apply(changes)
            if settings is not None and self._origin is not None:
                self._origin.settings = settings
        report = changes.report
        _log.log(logging.INFO if report else logging.DEBUG, "the configuration was read again; %s", report)
        if report and self._sender.reporter is not None:
            self._sender.reporter.reloaded(report)
        await self._reloader.settle(report)
        return report

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._sender.closed

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it works on; None before its first use."""
        return self._sender.deadlines.loop

    async def aclose(self) -> None:
        """Close what this router opened. May be called twice.

        Requests that wait for capacity or for their next attempt raise RouterClosedError. A router whose loop
        was closed may be closed on any other.

        Raises:
            RouterLoopError: The router works on another event loop, which is still open; it stays as it is.
        """
        if not self.closed:
            self._sender.deadlines.check_loop(asyncio.get_running_loop())
        self._sender.closed = True
        self._sender.selector.close()
        self._unwatch()
        self._sender.deadlines.on_adopt.clear()
        if self._watcher is not None:
            await self._watcher.aclose()
        if self._totals is not None:
            await self._totals.aclose()
        await self._opened.aclose()

    async def __aenter__(self) -> Self:
        self._sender.deadlines.enter_loop()  # or a client of it would have it work on a loop in a thread
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Router({len(self.keys.pool)} deployments, {type(self.keys.store).__name__})"
