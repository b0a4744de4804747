"""``llm-router demo``: a router at work on an emulator, for some seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_router.cli.demo_plan import MAX_WAIT, SPEED, demo_settings, prompts_for
from llm_router.cli.demo_view import Tally, plain_summary, watch
from llm_router.cli.emulated import make_emulator
from llm_router.cli.example import example_keys
from llm_router.cli.options import AsJson
from llm_router.cli.output import FAILED, is_terminal, print_json, say
from llm_router.config import Settings
from llm_router.domain.request import Request
from llm_router.errors import ProviderError
from llm_router.providers.gemini import GeminiProvider
from llm_router.router import Router
from llm_router.testing.clock import ScaledClock

if TYPE_CHECKING:
    from llm_router.emulator import GeminiEmulator

__all__ = ["demo"]

_CONCURRENCY = 16
"""Most prompts sent at once. A slow machine delays them all, but no delay may exceed the quotas' guard."""


def demo(
    *,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="How many prompts to send.")] = 300,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="A keys file of your own; its secrets are not used.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the router at work on an emulator.

    It needs no API key and no network. The keys and quotas are those of keys.json.example, with 4 requests a
    minute where a limit is left to be learnt, and the emulator enforces the quotas. To end within 20 seconds,
    the router and the emulator share a fast clock and raised quotas. The exit code is 1 if a prompt fails or
    the emulator refuses a request.
    """
    began = time.monotonic()
    settings, factor = demo_settings(keys or example_keys(), prompts)
    clock = ScaledClock(SPEED)
    tally = Tally(prompts, factor)
    emulator = make_emulator(clock, settings.deployments)
    # The emulator has its own thread: the work of the router must not delay its clock, nor the reverse.
    with _no_proxy(), emulator.run_in_thread():
        asyncio.run(_route(settings, emulator, clock, tally, draw=is_terminal() and not as_json))
    tally.elapsed = time.monotonic() - began
    if as_json:
        print_json(tally.record(emulator.requests, emulator.refused))
    else:
        say(plain_summary(tally, emulator.requests, emulator.refused))
    if tally.succeeded < tally.sent or emulator.refused:
        raise typer.Exit(FAILED)


async def _route(
    settings: Settings, emulator: GeminiEmulator, clock: ScaledClock, tally: Tally, *, draw: bool
) -> None:
    async with _provider(settings, emulator) as provider:
        router = Router.from_settings(
            settings, store="memory://", provider=provider, clock=clock, max_wait=MAX_WAIT
        )
        async with router, asyncio.TaskGroup() as group:
            if draw:
                group.create_task(watch(router, tally))
            prompts = prompts_for(settings.workloads, tally.prompts)
            for _ in range(_CONCURRENCY):
                group.create_task(_work(router, prompts, tally))


async def _work(router: Router, prompts: Iterator[tuple[str, str]], tally: Tally) -> None:
    """Send prompts until there are none left."""
    for workload, prompt in prompts:
        tally.sent += 1
        tally.note(await router.send(prompt, workload=workload, timeout=None))


@contextlib.asynccontextmanager
async def _provider(settings: Settings, emulator: GeminiEmulator) -> AsyncIterator[GeminiProvider]:
    """Yield a provider that has imported the SDK and made a client for every key.

    Otherwise, the first requests would arrive seconds after their quota was taken. The SDK makes every
    request: the demo is of the two together.
    """
    provider = GeminiProvider(base_url=emulator.url, direct=False)
    try:
        for deployment in {deployment.key: deployment for deployment in settings.deployments}.values():
            with contextlib.suppress(ProviderError):  # a model without quota refuses, but the client is made
                await provider.generate(deployment, Request(contents="Hello"))
        emulator.reset()
        yield provider
    finally:
        await provider.aclose()


@contextlib.contextmanager
def _no_proxy() -> Iterator[None]:
    """Keep requests to the emulator away from the proxy that the environment names."""
    name = "no_proxy"
    before = os.environ.get(name)
    os.environ[name] = ",".join(filter(None, (before or os.environ.get("NO_PROXY"), "127.0.0.1")))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
