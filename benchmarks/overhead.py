"""Overhead: what one ``await router.send()`` adds to a direct call of the provider."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any

from _harness import Measure, Report, Row, Scale, Table, calls_per_second, in_turn
from _peers import NotInstalledError, litellm_router, require
from _subjects import (
    FREE,
    MODEL,
    PROMPT_TOKENS,
    Instant,
    deployments,
    open_store,
    redis_server,
    use_each_once,
)

from llm_router import Request, Router, observe
from llm_router.providers.gemini import GeminiProvider

__all__ = ["run"]

SIZES = (10, 100, 1_000, 10_000, 100_000)
LITELLM_SIZES = (5, 100, 500)
_STRIDE = 8
Sample = Callable[[], Awaitable[Mapping[str, float]]]


async def run(scale: Scale) -> Report:
    """Measure the overhead of a send."""
    ours = await _ours(scale)
    observed = await _observed(scale)
    estimates = await _estimates(scale)
    litellm = await _litellm(scale)
    return Report("overhead", [ours, observed, estimates, litellm, _targets(ours)])


async def _ours(scale: Scale) -> Table:
    table = Table.about(
        "router.send() compared with provider.generate(), instant provider, rpm + tpm + rpd",
        "added: send minus the direct call of the same round; the baseline is 10 deployments in memory",
        "in the redis row each send waits for its reserve and its settle, a round trip each",
    )
    for n in (10,) if scale.short else SIZES:
        table.add(await _send(scale, n, "memory", None))
    with redis_server() as url:
        if url is not None:
            table.add(await _send(scale, 10, "redis", url))
    return table


async def _send(scale: Scale, n: int, kind: str, url: str | None) -> Row:
    provider, pool = Instant(), deployments(n)
    request = Request(contents="hello")
    # Other stores suspend in every send, so that a stride is not needed and would only add to the time.
    stride = _STRIDE if kind == "memory" else 1

    async def direct() -> None:
        await provider.generate(pool[0], request, _ignore)

    async with (
        open_store(kind, redis_url=url) as store,
        Router(pool, provider=provider, store=store) as router,
    ):
        await use_each_once(store, pool)

        async def send() -> None:
            response = await router.send("hello")
            if not response.success:
                raise RuntimeError(f"a send failed: {response.error}")

        found = await in_turn(
            {"direct": _timed(direct, scale, _STRIDE), "send": _timed(send, scale, stride)}, scale.runs
        )
    measures = _added(found["send"]["time"], found["direct"]["time"])
    return Row(_case(kind, n), "llm_router", measures, (_case("memory", 10), "llm_router"))


async def _observed(scale: Scale) -> Table:
    table = Table.about(
        "What observers cost: router.send() with and without, instant provider, 10 deployments in memory",
        "five events a send; the baseline is a send without observers, in turn with the others",
        '"none, again" is the same once more: by how much it differs from 1.00 is what a ratio can be off',
    )
    observers, missing = _observers()
    async with AsyncExitStack() as stack:
        sends: dict[str, Sample] = {}
        for name, observer in observers.items():
            pool, watching = deployments(10), () if observer is None else (observer,)
            store = await stack.enter_async_context(open_store("memory"))
            router = Router(pool, provider=Instant(), store=store, observers=watching)
            await stack.enter_async_context(router)
            await use_each_once(store, pool)
            sends[name] = _timed(_plain_send(router), scale, _STRIDE)
        found = await in_turn(sends, scale.runs)
    baseline = (_case("memory", 10), "no observers")
    for name, samples in found.items():
        table.add(Row(baseline[0], name, {"send": Measure(samples["time"], "µs")}, baseline))
    for name, note in missing.items():
        table.add(Row(baseline[0], name, note=note))
    return table


async def _estimates(scale: Scale) -> Table:
    """Measure for how long the estimate of a long prompt keeps the event loop from everything else."""
    table = Table.about(
        "The estimate of input tokens, which every send makes on the event loop",
        "a megabyte of words; the floor is to encode it as UTF-8, a tokeniser takes hundreds of milliseconds",
    )
    case, prompts = "1 MB", {"English": "word " * 200_000, "Chinese": "\u8bcd" * 333_333}
    async with aclosing(GeminiProvider()) as provider:
        works: dict[str, Sample] = {}
        for language, prompt in prompts.items():
            estimate = partial(provider.estimate_tokens, Request(contents=prompt))
            works[f"floor, {language}"] = _timed(_awaitable(prompt.encode), scale)
            works[f"llm_router, {language}"] = _timed(_awaitable(estimate), scale)
        found = await in_turn(works, scale.runs)
    for name, samples in found.items():
        baseline = (case, name.replace("llm_router", "floor"))
        table.add(Row(case, name, {"estimate": Measure(samples["time"], "µs")}, baseline))
    return table


def _awaitable(work: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        return work()

    return call


def _observers() -> tuple[dict[str, Any], dict[str, str]]:
    """Return the observers to measure, and which cannot be measured and why."""
    quiet = logging.getLogger("llm_router.quiet")
    quiet.setLevel(logging.INFO)
    found: dict[str, Any] = {
        "no observers": None,
        "none, again": None,
        "one that does nothing": _Idle(),
        "logging, not at DEBUG": observe.LoggingObserver(quiet),
    }
    missing: dict[str, str] = {}
    try:
        found["Prometheus"] = observe.PrometheusObserver(require("prometheus_client").CollectorRegistry())
    except NotInstalledError as error:
        missing["Prometheus"] = str(error)
    try:
        metrics, trace = require("opentelemetry.sdk.metrics"), require("opentelemetry.sdk.trace")
        found["OpenTelemetry, SDK"] = observe.OpenTelemetryObserver(
            trace.TracerProvider(), metrics.MeterProvider()
        )
    except NotInstalledError as error:
        missing["OpenTelemetry, SDK"] = str(error)
    return found, missing


class _Idle:
    """An observer that does nothing."""

    def observe(self, event: object) -> None:
        """Do nothing."""


def _plain_send(router: Router) -> Callable[[], Awaitable[object]]:
    async def send() -> None:
        await router.send("hello")

    return send


def _ignore() -> None:
    """Stand in for what a router does when a request is on its way."""


def _added(send: tuple[float, ...], direct: tuple[float, ...]) -> dict[str, Measure]:
    added = tuple(one - other for one, other in zip(send, direct, strict=True))
    return {"added": Measure(added, "µs"), "send": Measure(send, "µs"), "direct": Measure(direct, "µs")}


def _case(kind: str, n: int) -> str:
    return f"{kind}, {n:,} deployments"


def _timed(work: Callable[[], Awaitable[object]], scale: Scale, stride: int = 1) -> Sample:
    async def sample() -> Mapping[str, float]:
        return {"time": 1e6 / await calls_per_second(work, 1, scale.seconds, stride)}

    return sample


async def _litellm(scale: Scale) -> Table:
    table = Table.about(
        "LiteLLM: Router.acompletion() compared with litellm.acompletion(), both with mock_response",
        "the baseline is llm_router's added time for the same number of deployments in the same run",
    )
    for n in LITELLM_SIZES[: 1 if scale.short else None]:
        case = _case("memory", n)
        ours = await _send(scale, n, "memory", None)
        table.add(Row(case, "llm_router", ours.measures))
        for strategy in ("simple-shuffle", "usage-based-routing-v2"):
            table.add(await _mocked(scale, n, strategy))
    return table


async def _mocked(scale: Scale, n: int, strategy: str) -> Row:
    case, name = _case("memory", n), f"LiteLLM {strategy}"
    try:
        router = litellm_router(n, strategy=strategy, rpm=FREE, tpm=FREE * PROMPT_TOKENS)
    except NotInstalledError as error:
        return Row(case, name, note=str(error))
    litellm: Any = require("litellm")
    messages = [{"role": "user", "content": "hello"}]

    async def direct() -> None:
        await litellm.acompletion(
            model=f"gemini/{MODEL}", api_key="emulated", messages=messages, mock_response="ok"
        )

    async def send() -> None:
        await router.acompletion(model="group", messages=messages, mock_response="ok")

    found = await in_turn({"direct": _timed(direct, scale), "send": _timed(send, scale)}, scale.runs)
    measures = _added(found["send"]["time"], found["direct"]["time"])
    return Row(case, name, measures, (case, "llm_router"), "no reservation before the call, no rpd")


def _targets(ours: Table) -> Table:
    table = Table("targets")
    ten = ours.find(_case("memory", 10), "llm_router")
    most = ours.find(_case("memory", 100_000), "llm_router")
    if ten is not None:
        added = (ten.measures["added"].median,)
        table.add(Row("10 deployments: added ≤ 25 µs", "llm_router", {"reached": Measure(added, "µs")}))
    if most is not None:
        ratio = (ours.ratio(most) or 0.0,)
        table.add(Row("10 → 100,000 deployments: ≤ 1.3 ×", "llm_router", {"reached": Measure(ratio, "×")}))
    return table
