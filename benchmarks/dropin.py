"""The drop-in client: what its calls cost beside those of the bare SDK, on the same kind of transport."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import attrs
from _fleet import child
from _harness import Measure, Report, Row, Scale, Table, call_rows, call_sampler
from _subjects import MODEL, deployments

from llm_router import Router
from llm_router.providers.gemini import GeminiProvider, HttpBackend

__all__ = ["run"]

_PROMPT = "Say in one sentence what a token bucket is."
_KEYS = 10
_FACTOR = 4
"""How much longer runs are here than elsewhere, because a call takes about a millisecond."""

_BASELINE = "google-genai"
_OURS = "llm_router.genai"
_AIM = 1.1

_THREADS = (1, 8)
_IN_FLIGHT = (1, 16)


@attrs.frozen
class Works:
    """One call of a client, in each way in which it can be made."""

    whole: Callable[[], Awaitable[object]]
    streamed: Callable[[], Awaitable[object]]
    whole_blocking: Callable[[], object]
    streamed_blocking: Callable[[], object]


async def run(scale: Scale) -> Report:
    """Measure calls of both clients, by each library that both can send with."""
    table = Table.about(
        "drop-in client: CPU time per call against the emulator (a separate process, over HTTP on loopback)",
        "both clients send by the library that the case names, share one process and take turns",
        "CPU is the time of that process, without the emulator",
        "the bare SDK has one key and reserves nothing; the router of the drop-in client has ten",
        "the drop-in client is made of an httpx client, and its router sends by the library that is named; "
        f"{_OURS}, usual: by aiohttp, as it does where that is installed, also for blocking calls",
    )
    with child("emulator", {}) as url:
        async with _clients(url) as clients:
            for in_flight in _IN_FLIGHT[:1] if scale.short else _IN_FLIGHT:
                sampler = partial(call_sampler, in_flight=in_flight, seconds=_FACTOR * scale.seconds)
                for library, name in itertools.product(("aiohttp", "httpx"), ("whole", "streamed")):
                    works = {each: getattr(work, name) for each, work in clients[library].items()}
                    case = f"{library}, {in_flight} in flight, {name}"
                    table.add(*await _rows(case, works, sampler, scale))
            for threads in _THREADS[:1] if scale.short else _THREADS:
                sampler = partial(_blocking_sampler, threads=threads, seconds=_FACTOR * scale.seconds)
                for name in ("whole", "streamed"):
                    subjects = {**clients["httpx"], f"{_OURS}, usual": clients["aiohttp"][_OURS]}
                    works = {each: getattr(work, f"{name}_blocking") for each, work in subjects.items()}
                    case = f"httpx, {threads} thread{'s' * (threads > 1)}, blocking, {name}"
                    table.add(*await _rows(case, works, sampler, scale))
    return Report("dropin", [table, _targets(table)])


async def _rows(
    case: str,
    works: Mapping[str, Callable[[], Any]],
    sampler: Callable[[Any], Callable[[], Awaitable[Mapping[str, float]]]],
    scale: Scale,
) -> list[Row]:
    samplers = {each: sampler(work) for each, work in works.items()}
    rows = await call_rows(case, _BASELINE, samplers, scale.runs)
    first = ("CPU per call", "calls")  # which decides what is compared
    return [attrs.evolve(row, measures={name: row.measures[name] for name in first}) for row in rows]


def _blocking_sampler(
    work: Callable[[], object], *, threads: int, seconds: float
) -> Callable[[], Awaitable[Mapping[str, float]]]:
    def sample() -> Mapping[str, float]:
        counts = [0] * threads
        end = time.perf_counter() + seconds

        def repeat(number: int) -> None:
            while time.perf_counter() < end or not counts[number]:
                work()
                counts[number] += 1

        began, cpu = time.perf_counter(), time.process_time()
        workers = [threading.Thread(target=repeat, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        calls, cpu = sum(counts), time.process_time() - cpu
        return {"calls": calls / (time.perf_counter() - began), "CPU per call": cpu / calls * 1e6}

    return partial(asyncio.to_thread, sample)


@asynccontextmanager
async def _clients(url: str) -> AsyncIterator[Mapping[str, Mapping[str, Works]]]:
    """Yield the calls of both clients, by the library that sends."""
    from google import genai  # noqa: PLC0415 - slow to import, and not always measured

    from llm_router.genai import Client  # noqa: PLC0415 - as above
    from llm_router.genai.transports import http_library  # noqa: PLC0415 - as above

    def bare(**options: Any) -> Works:
        http_options = genai.types.HttpOptions(base_url=url, **options)
        client = genai.Client(api_key="emulated-secret-0", http_options=http_options)
        stack.push_async_callback(client.aio.aclose)
        return _works(client)

    def ours(backend: HttpBackend) -> Works:
        def make() -> Router:
            return Router(deployments(_KEYS), provider=GeminiProvider(base_url=url, http_backend=backend))

        client = Client(router=make)
        stack.callback(client.close)
        return _works(client)

    lib = http_library()
    limits = lib.Limits(max_connections=None)
    async with AsyncExitStack() as stack:
        http = stack.enter_context(lib.Client(timeout=None, limits=limits))
        http_async = await stack.enter_async_context(lib.AsyncClient(timeout=None, limits=limits))
        yield {
            "aiohttp": {_BASELINE: bare(), _OURS: ours("aiohttp")},  # the SDK's own choice, too
            "httpx": {
                _BASELINE: bare(httpx_client=http, httpx_async_client=http_async),
                _OURS: ours("httpx"),
            },
        }


def _works(client: Any) -> Works:
    asked = {"model": MODEL, "contents": _PROMPT}

    async def whole() -> None:
        _check((await client.aio.models.generate_content(**asked)).text)

    async def streamed() -> None:
        _check([piece async for piece in await client.aio.models.generate_content_stream(**asked)])

    def whole_blocking() -> None:
        _check(client.models.generate_content(**asked).text)

    def streamed_blocking() -> None:
        _check(list(client.models.generate_content_stream(**asked)))

    return Works(whole, streamed, whole_blocking, streamed_blocking)


def _check(answer: Any) -> None:
    if not answer:
        raise RuntimeError("the emulator returned no answer")


def _targets(table: Table) -> Table:
    targets = Table("targets")
    for row in table.rows:
        ratio = table.ratio(row)
        if row.subject != _BASELINE and ratio is not None:
            measures = {"reached": Measure((ratio,), "×")}
            targets.add(Row(f"{row.case}: ≤ {_AIM} × the bare SDK", row.subject, measures))
    return targets
