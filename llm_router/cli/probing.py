"""Asking the provider with one key at a time: is it alive, what does it serve, whose project is it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TypeVar
from urllib.parse import quote

import attrs

from llm_router.config import Settings
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.exchange import Exchange, Head
from llm_router.domain.queries import ModelInfo
from llm_router.domain.response import Response
from llm_router.domain.status import KeyStatus
from llm_router.errors import LLMRouterError, ProviderError
from llm_router.providers.base import QueriedProvider
from llm_router.providers.gemini import GeminiProvider
from llm_router.router import Router
from llm_router.stores.base import RateLimitStore
from llm_router.stores.failover import FailoverStore
from llm_router.stores.urls import open_store

__all__ = [
    "Projects",
    "Trial",
    "are_served",
    "lists_of_models",
    "prove_projects",
    "served_models",
    "try_keys",
]

_AT_ONCE = 32
_PROMPT = "Reply with the word OK."
_MOST_OUTPUT = 16
"""Tokens of the answer to a trial: enough for the word, and little even for a model that thinks."""

_STRANGE = frozenset({403, 404})
"""What a key is told of a file of another project, or of a model that it is not served."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@attrs.frozen
class Trial:
    """What became of one request through one key.

    Attributes:
        deployment: What it was sent through.
        response: The outcome.
    """

    deployment: Deployment
    response: Response


@attrs.frozen
class Projects:
    """Which keys belong to one project.

    Attributes:
        groups: The names of the keys of each project.
        failed: The keys of which it could not be found out, with the reason.
    """

    groups: tuple[tuple[str, ...], ...]
    failed: dict[str, LLMRouterError]


async def try_keys(
    settings: Settings, url: str, chosen: Callable[[list[KeyStatus]], Sequence[Deployment]], timeout: float
) -> tuple[list[Trial], list[KeyStatus]]:
    """Send one cheap request through each of some deployments, all at once; it counts like any other.

    What is quarantined is tried as well. What is disabled, or has no room by our own count, is not sent.

    Args:
        settings: The configuration.
        url: The store.
        chosen: Says what to try, given the statuses before.
        timeout: Most seconds for each.

    Returns:
        What became of it, in the order of what was chosen, and the statuses of all keys afterwards.
    """
    async with _provider(settings.base_url) as provider, aclosing(_store(url)) as store:
        whole = Router.from_settings(settings, store=store, provider=provider)
        async with whole:
            deployments = chosen(await whole.get_all_key_statuses())
            await _let_in(store, deployments)

            async def attempt(deployment: Deployment) -> Trial:
                # A router of its own: nothing else may take the place of a key that is tried.
                router = Router(
                    [deployment],
                    store=store,
                    provider=provider,
                    workloads=settings.workloads,
                    max_retries=0,
                    max_wait=0.0,
                )
                async with router:
                    response = await router.send(_PROMPT, max_output_tokens=_MOST_OUTPUT, timeout=timeout)
                return Trial(deployment, response)

            trials = await _each(attempt, deployments)
            return trials, await whole.get_all_key_statuses()


async def _let_in(store: RateLimitStore, deployments: Sequence[Deployment]) -> None:
    """Have quarantines let one request through."""
    for snapshot in await store.snapshot(deployments):
        if snapshot.cooldown is not None and snapshot.cooldown.is_quarantine:
            for scope in snapshot.deployment.scopes:
                await store.cool_down(Cooldown.retry(scope))


def _store(url: str) -> FailoverStore:
    return FailoverStore(open_store(url), policy="closed", owns_store=True)


@asynccontextmanager
async def _provider(base_url: str | None) -> AsyncIterator[GeminiProvider]:
    async with aclosing(GeminiProvider(base_url=base_url)) as provider:
        await provider.prepare()
        yield provider


async def lists_of_models(
    keys: Sequence[Key], base_url: str | None, timeout: float
) -> list[list[ModelInfo] | LLMRouterError]:
    """Return for each key which models it is served, or why that is not known; it takes no quota."""
    async with _provider(base_url) as provider:

        async def attempt(key: Key) -> list[ModelInfo] | LLMRouterError:
            try:
                async with asyncio.timeout(timeout):
                    return await served_models(provider, key)
            except LLMRouterError as error:
                return error
            except TimeoutError:
                return _late(timeout)

        return await _each(attempt, keys)


async def served_models(provider: QueriedProvider, key: Key) -> list[ModelInfo]:
    """Return which models a key is served.

    Raises:
        ProviderError: The key is not accepted, or there is no answer.
    """
    models: list[ModelInfo] = []
    page = ""
    while True:
        _, body = await _ask(provider, key, provider.queries.models(page))
        more, page = provider.queries.read_models(body)
        models += more
        if not page:
            return models


async def are_served(
    keys: Mapping[Key, Sequence[str]], base_url: str | None, timeout: float
) -> dict[tuple[Key, str], bool]:
    """Return whether a key is served a model, for models that no list has, such as aliases.

    What cannot be found out counts as served.
    """
    asked = [(key, model) for key, models in keys.items() for model in models]
    async with _provider(base_url) as provider:

        async def attempt(pair: tuple[Key, str]) -> bool:
            exchange = Exchange(verb="GET", path=f"/v1beta/models/{quote(pair[1], safe='')}")
            try:
                async with asyncio.timeout(timeout):
                    await _ask(provider, pair[0], exchange)
            except ProviderError as error:
                return error.code not in _STRANGE
            except TimeoutError:
                pass
            return True

        return dict(zip(asked, await _each(attempt, asked), strict=True))


async def prove_projects(keys: Sequence[Key], base_url: str | None, timeout: float) -> Projects:
    """Find out which keys belong to one project, by files: one that a key has uploaded, others can read.

    The files are removed again. It takes no quota of a model.
    """
    failed: dict[str, LLMRouterError] = {}
    files: dict[str, str] = {}
    async with _provider(base_url) as provider:

        async def upload(key: Key) -> None:
            try:
                async with asyncio.timeout(timeout):
                    files[key.key_id] = await _upload(provider, key)
            except LLMRouterError as error:
                failed[key.key_id] = error
            except TimeoutError:
                failed[key.key_id] = _late(timeout)

        try:
            await _each(upload, keys)
            groups: list[list[Key]] = []
            for key in keys:
                if key.key_id in files:
                    await _join(provider, key, groups, files, failed, timeout)
        finally:
            by_name = {key.key_id: key for key in keys}
            await _each(lambda each: _remove(provider, by_name[each[0]], each[1]), list(files.items()))
    return Projects(tuple(tuple(key.key_id for key in group) for group in groups), failed)


async def _join(
    provider: QueriedProvider,
    key: Key,
    groups: list[list[Key]],
    files: dict[str, str],
    failed: dict[str, LLMRouterError],
    timeout: float,
) -> None:
    """Put a key into the group of the first key whose file it can read, or into one of its own."""

    async def reads(group: list[Key]) -> bool:
        async with asyncio.timeout(timeout):
            return await _can_read(provider, key, files[group[0].key_id])

    try:
        readable = await _each(reads, groups)
    except LLMRouterError as error:
        failed[key.key_id] = error
    except TimeoutError:
        failed[key.key_id] = _late(timeout)
    else:
        own = next((group for group, can in zip(groups, readable, strict=True) if can), None)
        if own is None:
            groups.append([key])
        else:
            own.append(key)


async def _upload(provider: QueriedProvider, key: Key) -> str:
    data = b"Whose project is this?"
    start = Exchange(
        path="/upload/v1beta/files",
        headers=(
            ("content-type", "application/json"),
            ("x-goog-upload-protocol", "resumable"),
            ("x-goog-upload-command", "start"),
            ("x-goog-upload-header-content-type", "text/plain"),
            ("x-goog-upload-header-content-length", str(len(data))),
        ),
        body=json.dumps({"file": {"displayName": f"llm-router-{secrets.token_hex(4)}"}}).encode(),
    )
    head, _ = await _ask(provider, key, start)
    path, _, query = dict(head.headers).get("x-goog-upload-url", "").partition("?")
    headers = (("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", "0"))
    head, _ = await _ask(provider, key, Exchange(path=path, query=query, headers=headers, body=data))
    if not head.created:
        raise ProviderError("the provider did not name the file that it took", kind="network")
    return head.created


async def _can_read(provider: QueriedProvider, key: Key, file: str) -> bool:
    try:
        await _ask(provider, key, Exchange(verb="GET", path=f"/v1beta/{file}"))
    except ProviderError as error:
        if error.code in _STRANGE:
            return False
        raise
    return True


async def _remove(provider: QueriedProvider, key: Key, file: str) -> None:
    with suppress(LLMRouterError):  # it expires after two days
        await _ask(provider, key, Exchange(verb="DELETE", path=f"/v1beta/{file}"))


async def _ask(provider: QueriedProvider, key: Key, exchange: Exchange) -> tuple[Head, bytes]:
    """Send an exchange that takes no quota of a model, with a certain key."""
    head, body = Head(0), b""
    async with aclosing(
        provider.relay(Deployment(key, "any"), provider.read_exchange(exchange), lambda: None)
    ) as replies:
        async for reply in replies:
            if isinstance(reply.raw, Head):
                head, body = reply.raw, reply.raw.body or b""
            else:
                body += reply.raw
    return head, body


def _late(timeout: float) -> ProviderError:
    return ProviderError(f"no answer within {timeout:g} s", kind="timeout")


async def _each(work: Callable[[_T], Awaitable[_R]], items: Iterable[_T]) -> list[_R]:
    """Do some work for each item, for a few of them at once; return what came of it, in order.

    Raises:
        BaseException: What the first of them raised; the others are cancelled.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(item: _T) -> _R:
        async with slots:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
