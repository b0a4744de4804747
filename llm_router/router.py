"""The router: the one object that users hold."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from llm_router.conversations.base import HistoryStore
from llm_router.conversations.memory import MemoryHistory
from llm_router.domain.clock import Clock, SystemClock
from llm_router.domain.deployment import Deployment
from llm_router.domain.quota import GUARD
from llm_router.domain.request import Fallback, Request
from llm_router.domain.response import Response
from llm_router.domain.status import Health, KeyStatus
from llm_router.engine.conversation import HISTORY_TOKENS, Conversation, Conversations
from llm_router.engine.intake import Intake
from llm_router.engine.keys import KeyManager
from llm_router.engine.launch import LaunchPad
from llm_router.engine.outage import Outage
from llm_router.engine.pacing import Pace
from llm_router.engine.plan import Planner
from llm_router.engine.pool import Pool
from llm_router.engine.retry import RetryPolicy
from llm_router.engine.selector import Selector
from llm_router.engine.sender import Sender
from llm_router.engine.streaming import Stream, Streamer
from llm_router.errors import ConfigError
from llm_router.providers.base import Provider
from llm_router.stores.base import RateLimitStore, Sharded
from llm_router.stores.failover import LOCAL_SHARE, FailoverStore, StoreFailurePolicy
from llm_router.stores.memory import MemoryStore
from llm_router.stores.urls import open_store
from llm_router.strategies.base import SelectionStrategy
from llm_router.strategies.least_loaded import LeastLoaded

if TYPE_CHECKING:
    from llm_router.config import Settings

__all__ = ["Router"]

# The configuration and the Gemini adapter are imported where they are used: they are an eighth of the time
# that importing the library takes, and who builds a router from values, or for tests, needs neither.


class Router:
    """Sends prompts through a pool of keys and models so that no quota is broken and none is left unused.

    A router belongs to one event loop at a time. It may be shared by any number of tasks. Routers are
    independent of each other unless they share a store. The first send has the providers prepare: for Gemini
    a thread imports the SDK, which takes a second or so.

    Args:
        deployments: What to send through; at least one.
        store: Who keeps the quotas: a store (which stays the caller's to close), a URL for
            :func:`~llm_router.stores.open_store`, or None for the memory of this process.
        strategy: Orders the deployments inside a tier; least-loaded by default.
        provider: Who sends: one adapter for all keys (which stays the caller's to close), adapters by the
            name that keys give as their ``provider``, or None for Gemini through google-genai.
        clock: Where time comes from; the machine's by default.
        workloads: From lightest to heaviest; neighbours are tried first on fallback.
        inactive: Deployments that are only shown in statuses.
        max_retries: Further attempts after the first.
        base_backoff: Upper bound of the first backoff, in seconds.
        max_wait: Default of :meth:`send`.
        on_store_failure: What to do while the store fails: ``"local"`` goes on with this process's share of
            every quota, ``"closed"`` answers with unsuccessful responses, ``"open"`` goes on without limits.
        local_share: That share, above 0 and at most 1.
        max_requests_per_second: Calls that this process sends in a second at most; None for no such bound.
        safety_settings: Category → threshold, over ``BLOCK_NONE`` in the four categories of the Gemini API.
        base_url: Another server for the Gemini API, such as the emulator's.
        histories: Who keeps conversations; the memory of this process by default.
        history_tokens: Tokens of history sent along per workload.

    Raises:
        ConfigError: No deployment, two with the same key and model, or a workload that is not listed.
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
        local_share: float = LOCAL_SHARE,
        max_requests_per_second: float | None = None,
        safety_settings: Mapping[str, str] | None = None,
        base_url: str | None = None,
        histories: HistoryStore | None = None,
        history_tokens: Mapping[str, int] | None = None,
    ) -> None:
        active = tuple(deployments)
        _check(active, workloads, max_requests_per_second)
        clock = clock or SystemClock()
        self._owned: list[RateLimitStore | Provider] = []

        owned = store is None or isinstance(store, str)
        if store is None or isinstance(store, str):
            # A store's own clock is the better one for sharing: Redis goes by its server's.
            store = open_store(store or "memory://", clock=None if isinstance(clock, SystemClock) else clock)
        if not isinstance(store, MemoryStore):  # which cannot fail
            store = FailoverStore(
                store,
                MemoryStore(clock=clock),
                policy=on_store_failure,
                local_share=local_share,
                owns_store=owned,
                clock=clock,
            )
        if owned or isinstance(store, FailoverStore):
            self._owned.append(store)
        if provider is None:
            from llm_router.providers.gemini import GeminiProvider  # noqa: PLC0415

            provider = GeminiProvider(base_url=base_url, safety_settings=safety_settings)
            self._owned.append(provider)
        names = {deployment.key.provider for deployment in active}
        self._providers = provider if isinstance(provider, Mapping) else dict.fromkeys(names, provider)
        if missing := names - self._providers.keys():
            raise ConfigError(
                f"no adapter for provider {min(missing)!r}: pass provider={{{min(missing)!r}: …}}"
            )
        speaker = self._providers[active[0].key.provider]

        pool = Pool(active, store if isinstance(store, Sharded) else None)
        outage = Outage()
        pace = None if max_requests_per_second is None else Pace(max_requests_per_second)
        guard = max((quota.guard for deployment in active for quota in deployment.quotas), default=GUARD)
        pad = LaunchPad(clock, guard)
        selector = Selector(store, pool, strategy or LeastLoaded(), clock, outage, pad, pace)
        policy = RetryPolicy(max_retries, base_backoff)
        planner = Planner(pool, tuple(workloads))
        self._intake = Intake(planner, (speaker, *self._providers.values()), max_wait)
        self._sender = Sender(self._providers, store, selector, pool, policy, clock, outage)
        self._streamer = Streamer(self._sender)
        self.keys = KeyManager(pool, tuple(inactive), store, selector, outage, clock)
        """The statuses of the keys."""
        self._conversations = Conversations(
            self.send,
            self.stream,
            speaker.estimate_tokens,
            MemoryHistory(clock=clock) if histories is None else histories,
            {**HISTORY_TOKENS, **(history_tokens or {})},
        )

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
        **options: Any,
    ) -> Self:
        """Make a router from keys.json, ``.env`` and the environment.

        Args:
            path: The keys file.
            env: The environment; ``os.environ`` by default.
            env_file: A file of variables behind the environment, looked for beside the keys file, then in
                the working directory; None for none.
            guard: Seconds added to the windows of quotas: the longest delay expected from taking quota to
                the provider's counting it. Raise it where hundreds of requests start at once.
            store: As for :class:`Router`; by default what the environment names, else memory.
            provider: As for :class:`Router`.
            options: Whatever else :class:`Router` takes; it wins over file and environment.

        Raises:
            ConfigError: Something is wrong; the message names the file, the entry and the remedy.
        """
        from llm_router.config import Environ, load_settings  # noqa: PLC0415

        names = ("gemini", *provider) if isinstance(provider, Mapping) else ("gemini",)
        env = None if env is None else Environ(env)  # whose repr no traceback can show values by
        settings = load_settings(path, env=env, env_file=env_file, guard=guard, providers=names)
        return cls.from_settings(settings, store=store, provider=provider, **options)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        store: RateLimitStore | str | None = None,
        **options: Any,
    ) -> Self:
        """Make a router from loaded settings; ``options`` win over them."""
        defaults: dict[str, Any] = {
            "workloads": settings.workloads,
            "inactive": settings.inactive,
            "max_retries": settings.max_retries,
            "base_backoff": settings.base_backoff,
            "max_wait": settings.max_wait,
            "base_url": settings.base_url,
        }
        return cls(settings.deployments, store=store or settings.store_url, **(defaults | options))

    async def send(
        self,
        prompt: Any,
        *,
        workload: str | None = None,
        model_preference: str | None = None,
        max_output_tokens: int | None = None,
        system_instruction: Any = None,
        temperature: float | None = None,
        config: Any = None,
        safety_settings: Mapping[str, str] | None = None,
        fallback: Fallback = "any",
        timeout: float | None = 60.0,
        max_wait: float | None = None,
    ) -> Response:
        """Send a prompt through the best deployment that has room for it.

        Args:
            prompt: A string, contents as google-genai takes them, or a :class:`Request`.
            workload: The workload wished for; None for any.
            model_preference: The model wished for; None for any.
            max_output_tokens: Upper bound of the answer, in tokens.
            system_instruction: The system instruction.
            temperature: Sampling temperature.
            config: A ``GenerateContentConfig`` or its dict; the arguments above win over it.
            safety_settings: Category → threshold, over those of the router.
            fallback: How far from the wish it may go: ``"any"`` deployment, the preferred ``"model"`` on any
                workload, or ``"none"``.
            timeout: Seconds for all attempts together, time spent waiting for capacity not counted; None for
                no bound.
            max_wait: Seconds to wait for capacity at most; None for the router's default.

        Returns:
            The response. Whatever happens between router and provider is told by it and not raised.

        Raises:
            UnknownWorkloadError: The workload is not configured.
            UnknownModelError: No deployment serves the model.
            InvalidRequestError: Another argument is wrong.
            RouterClosedError: The router was closed.
        """
        request = Request(
            contents=prompt,
            max_output_tokens=max_output_tokens,
            system_instruction=system_instruction,
            temperature=temperature,
            config=config,
            safety_settings=safety_settings,
        )
        job = await self._intake.job(request, workload, model_preference, fallback, timeout, max_wait)
        return await self._sender.send(job)

    def stream(
        self,
        prompt: Any,
        *,
        workload: str | None = None,
        model_preference: str | None = None,
        max_output_tokens: int | None = None,
        system_instruction: Any = None,
        temperature: float | None = None,
        config: Any = None,
        safety_settings: Mapping[str, str] | None = None,
        fallback: Fallback = "any",
        timeout: float | None = 60.0,
        max_wait: float | None = None,
    ) -> Stream:
        """Send a prompt as :meth:`send` does, and read the answer while it comes.

        Args:
            prompt: As for :meth:`send`, and so are the others but the timeout.
            workload: The workload wished for; None for any.
            model_preference: The model wished for; None for any.
            max_output_tokens: Upper bound of the answer, in tokens.
            system_instruction: The system instruction.
            temperature: Sampling temperature.
            config: A ``GenerateContentConfig`` or its dict; the arguments above win over it.
            safety_settings: Category → threshold, over those of the router.
            fallback: How far from the wish it may go.
            timeout: Seconds for all attempts until the first piece has come, and for each piece after it.
            max_wait: Seconds to wait for capacity at most; None for the router's default.

        Returns:
            The stream: an asynchronous context manager. See :class:`~llm_router.Stream` for how to read it.

        Raises, when the stream is entered:
            UnknownWorkloadError: The workload is not configured.
            UnknownModelError: No deployment serves the model.
            InvalidRequestError: Another argument is wrong.
            RouterClosedError: The router was closed.
        """
        request = Request(
            contents=prompt,
            max_output_tokens=max_output_tokens,
            system_instruction=system_instruction,
            temperature=temperature,
            config=config,
            safety_settings=safety_settings,
        )
        job = partial(self._intake.job, request, workload, model_preference, fallback, timeout, max_wait)
        return Stream(self._streamer.events(job))

    async def send_one_shot(
        self,
        *,
        prompt: str,
        workload: str | None = None,
        model_preference: str | None = None,
        max_output_tokens: int | None = None,
        **options: Any,
    ) -> Response:
        """Send one prompt; the same as :meth:`send`."""
        return await self.send(
            prompt,
            workload=workload,
            model_preference=model_preference,
            max_output_tokens=max_output_tokens,
            **options,
        )

    def conversation(
        self,
        conversation_id: str,
        *,
        system_instruction: Any = None,
        workload: str | None = None,
        **options: Any,
    ) -> Conversation:
        """Return a handle on a conversation, new or known.

        Args:
            conversation_id: Names the history.
            system_instruction: Sent with every turn.
            workload: The workload of every turn, unless a turn says otherwise.
            options: Other defaults for :meth:`send`.
        """
        defaults = {"system_instruction": system_instruction, "workload": workload, **options}
        return Conversation(self._conversations, conversation_id, defaults)

    async def send_chat(self, *, conv_id: str, prompt: Any, **options: Any) -> Response:
        """Send the next turn of the conversation ``conv_id``; ``options`` are those of :meth:`send`."""
        return await self.conversation(conv_id).send(prompt, **options)

    async def health_check(self) -> Health:
        """Tell whether a send has a chance, and what is wrong. Never raises for an ailing store."""
        return await self.keys.health()

    async def get_all_key_statuses(self) -> list[KeyStatus]:
        """Return the status of every deployment; see :class:`KeyStatus`.

        Raises:
            StoreError: The store does not answer.
        """
        return await self.keys.get_all_key_statuses()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._intake.closed

    async def aclose(self) -> None:
        """Close what this router opened. May be called twice."""
        self._intake.closed = True
        while self._owned:
            await self._owned.pop().aclose()

    async def __aenter__(self) -> Self:
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


def _check(
    deployments: tuple[Deployment, ...], workloads: Sequence[str], max_requests_per_second: float | None
) -> None:
    if not deployments:
        raise ConfigError("a router needs at least one active deployment: add a key to keys.json")
    seen: set[tuple[str, str]] = set()
    for deployment in deployments:
        name = (deployment.key.key_id, deployment.model)
        if name in seen:
            raise ConfigError(f"deployment {deployment.id!r} is there twice: remove one")
        if deployment.workload not in workloads:
            raise ConfigError(
                f"deployment {deployment.id!r} has workload {deployment.workload!r}: "
                f"use one of {', '.join(map(repr, workloads))}, or add it to workloads"
            )
        seen.add(name)
    if max_requests_per_second is not None and max_requests_per_second <= 0:
        raise ConfigError(f"max_requests_per_second must be above 0, not {max_requests_per_second!r}")
