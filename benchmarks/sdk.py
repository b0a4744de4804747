"""The real SDK: google-genai calls per second through the router and without it, on the same emulator."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
from _fleet import child
from _harness import Measure, Report, Row, Scale, Table, calls_per_second, in_turn
from _subjects import MODEL, deployments

from llm_router import Request, Router
from llm_router.providers.gemini import GeminiProvider

__all__ = ["run"]

Work = Callable[[], Awaitable[object]]


@attrs.frozen
class Works:
    """Calls by the name of who makes them: for an answer as a whole, and for one that is streamed."""

    whole: Mapping[str, Work]
    streamed: Mapping[str, Work]


_PROMPT = "Say in one sentence what a token bucket is."
_KEYS = 10
_FACTOR = 4
"""A call takes about a millisecond: longer runs than elsewhere, for as many calls."""

_BASELINE = "google-genai"
_NOTES = {
    "google-genai, no safety settings": "sends less",
    "google-genai, own session": "an aiohttp session of its user's, deaf to the environment",
    "GeminiProvider": "the adapter alone: no choice, no quota",
}


async def run(scale: Scale) -> Report:
    """Measure calls through the SDK."""
    table = Table.about(
        "google-genai calls per second against the emulator (a process of its own, over HTTP on loopback)",
        "all clients are in one process and take turns; CPU is that of this process, without the emulator's",
        "the bare SDK reserves nothing, and has one key and the same four safety settings",
        "above 1 ×: the adapter prepares the config once, and seeks no proxy and no ~/.netrc in every call",
    )
    with child("emulator", {}) as url:
        for in_flight in (1,) if scale.short else (1, 16):
            table.add(*await _compare(scale, url, in_flight))
    return Report("sdk", [table, _aims(table)])


async def _compare(scale: Scale, url: str, in_flight: int) -> list[Row]:
    async with _bare(url) as bare, _ours(url) as ours:
        case = f"{in_flight} in flight"
        whole = await _rows(scale, case, in_flight, {**bare.whole, **ours.whole})
        return whole + await _rows(scale, f"{case}, streamed", in_flight, {**bare.streamed, **ours.streamed})


async def _rows(scale: Scale, case: str, in_flight: int, works: Mapping[str, Work]) -> list[Row]:
    samplers = {name: _sampler(work, in_flight, _FACTOR * scale.seconds) for name, work in works.items()}
    found = await in_turn(samplers, scale.runs)
    units = {"calls": "/s", "CPU per call": "µs"}
    return [
        Row(
            case,
            name,
            {quantity: Measure(values, units[quantity]) for quantity, values in samples.items()},
            (case, _BASELINE),
            _NOTES.get(name, ""),
        )
        for name, samples in found.items()
    ]


def _sampler(work: Work, in_flight: int, seconds: float) -> Callable[[], Awaitable[Mapping[str, float]]]:
    async def sample() -> Mapping[str, float]:
        calls = 0

        async def counted() -> None:
            nonlocal calls
            await work()
            calls += 1

        began = time.process_time()
        rate = await calls_per_second(counted, in_flight, seconds)
        return {"calls": rate, "CPU per call": (time.process_time() - began) / calls * 1e6}

    return sample


@asynccontextmanager
async def _ours(url: str) -> AsyncIterator[Works]:
    """Yield calls through the adapter and through the router."""
    pool, request = deployments(_KEYS), Request(contents=_PROMPT)
    provider = GeminiProvider(base_url=url)
    async with Router(pool, provider=provider) as router:

        async def adapter() -> None:
            if not (await provider.generate(pool[0], request)).text:
                raise RuntimeError("the emulator gave no answer")

        async def routed() -> None:
            (await router.send(_PROMPT)).raise_for_error()

        async def streamed() -> None:
            async with router.stream(_PROMPT) as stream:
                async for _ in stream:
                    pass

        yield Works({"GeminiProvider": adapter, "llm_router": routed}, {"llm_router": streamed})
    await provider.aclose()


@asynccontextmanager
async def _bare(url: str) -> AsyncIterator[Works]:
    """Yield calls of the bare SDK: as its documentation shows, and with what it can be spared."""
    import aiohttp  # noqa: PLC0415 - slow to import, and not always measured
    from google import genai  # noqa: PLC0415 - likewise

    def client(**options: Any) -> Any:
        http_options = genai.types.HttpOptions(base_url=url, **options)
        return genai.Client(api_key="emulated-secret-0", http_options=http_options)

    def call(client: Any, config: Any) -> Work:
        async def bare() -> None:
            response = await client.aio.models.generate_content(model=MODEL, contents=_PROMPT, config=config)
            if not response.text:
                raise RuntimeError("the emulator gave no answer")

        return bare

    async def streamed() -> None:
        chunks = await usual.aio.models.generate_content_stream(model=MODEL, contents=_PROMPT, config=config)
        if not [chunk async for chunk in chunks]:
            raise RuntimeError("the emulator gave no answer")

    settings = [
        genai.types.SafetySetting(category=f"HARM_CATEGORY_{name}", threshold="BLOCK_NONE")
        for name in ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
    ]
    config = genai.types.GenerateContentConfig(safety_settings=settings)
    usual = client()
    async with aiohttp.ClientSession() as session:
        whole = {
            _BASELINE: call(usual, config),
            "google-genai, no safety settings": call(usual, None),
            "google-genai, own session": call(client(aiohttp_client=session), config),
        }
        yield Works(whole, {_BASELINE: streamed})
    await usual.aio.aclose()


def _aims(table: Table) -> Table:
    aims = Table("aims")
    for row in table.rows:
        ratio = table.ratio(row)
        if row.subject == "llm_router" and ratio is not None:
            measures = {"reached": Measure((ratio,), "×")}
            aims.add(Row(f"{row.case}: ≥ 0.97 × the bare SDK", "llm_router", measures))
    return aims
