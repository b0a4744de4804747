"""The real SDK: google-genai calls per second with and without the router, against the same emulator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
from _fleet import child
from _harness import Measure, Report, Row, Scale, Table, call_rows, call_sampler
from _subjects import MODEL, deployments

from llm_router import Request, Router
from llm_router.providers.gemini import GeminiProvider

__all__ = ["run"]

Work = Callable[[], Awaitable[object]]


@attrs.frozen
class Works:
    """Calls by the name of the client: for a whole answer, and for a streamed one."""

    whole: Mapping[str, Work]
    streamed: Mapping[str, Work]


_PROMPT = "Say in one sentence what a token bucket is."
_KEYS = 10
_FACTOR = 4
"""How much longer runs are here than elsewhere, because a call takes about a millisecond."""

_BASELINE = "google-genai"
_BY_SDK = "llm_router, by the SDK"
_NOTES = {
    "google-genai, no safety settings": "sends less",
    "google-genai, own session": "an aiohttp session of the user's, which ignores the environment",
    _BY_SDK: "GeminiProvider(direct=False): the SDK makes every request and reads every answer",
    "GeminiProvider": "the adapter alone: no choice of a deployment, no quota",
}


async def run(scale: Scale) -> Report:
    """Measure calls through the SDK."""
    table = Table.about(
        "google-genai calls per second against the emulator (a separate process, over HTTP on loopback)",
        "all clients share one process and take turns; CPU is the time of that process, without the emulator",
        "the bare SDK uses one key and the same four safety settings, and reserves nothing",
        "above 1 ×: the adapter makes and reads the JSON of plain text itself, without the SDK's models, and "
        "looks for no proxy or ~/.netrc on each call",
    )
    with child("emulator", {}) as url:
        for in_flight in (1,) if scale.short else (1, 16):
            table.add(*await _compare(scale, url, in_flight))
    return Report("sdk", [table, _targets(table)])


async def _compare(scale: Scale, url: str, in_flight: int) -> list[Row]:
    async with _bare(url) as bare, _ours(url) as ours:
        case = f"{in_flight} in flight"
        whole = await _rows(scale, case, in_flight, {**bare.whole, **ours.whole})
        return whole + await _rows(scale, f"{case}, streamed", in_flight, {**bare.streamed, **ours.streamed})


async def _rows(scale: Scale, case: str, in_flight: int, works: Mapping[str, Work]) -> list[Row]:
    seconds = _FACTOR * scale.seconds
    samplers = {name: call_sampler(work, in_flight, seconds) for name, work in works.items()}
    return await call_rows(case, _BASELINE, samplers, scale.runs, _NOTES)


@asynccontextmanager
async def _ours(url: str) -> AsyncIterator[Works]:
    """Yield calls through the adapter and through the router."""
    pool, request = deployments(_KEYS), Request(contents=_PROMPT)
    provider, by_sdk = GeminiProvider(base_url=url), GeminiProvider(base_url=url, direct=False)
    async with Router(pool, provider=provider) as router, Router(pool, provider=by_sdk) as slower:

        async def adapter() -> None:
            if not (await provider.generate(pool[0], request)).text:
                raise RuntimeError("the emulator returned no answer")

        def routed(router: Router) -> Work:
            async def send() -> None:
                (await router.send(_PROMPT)).raise_for_error()

            return send

        def streamed(router: Router) -> Work:
            async def stream() -> None:
                async with router.stream(_PROMPT) as stream:
                    async for _ in stream:
                        pass

            return stream

        whole = {"GeminiProvider": adapter, "llm_router": routed(router), _BY_SDK: routed(slower)}
        yield Works(whole, {"llm_router": streamed(router), _BY_SDK: streamed(slower)})
    await provider.aclose()
    await by_sdk.aclose()


@asynccontextmanager
async def _bare(url: str) -> AsyncIterator[Works]:
    """Yield calls of the bare SDK: as its documentation shows them, and without its avoidable work."""
    import aiohttp  # noqa: PLC0415 - slow to import, and not always measured
    from google import genai  # noqa: PLC0415 - as above

    def client(**options: Any) -> Any:
        http_options = genai.types.HttpOptions(base_url=url, **options)
        return genai.Client(api_key="emulated-secret-0", http_options=http_options)

    def call(client: Any, config: Any) -> Work:
        async def bare() -> None:
            response = await client.aio.models.generate_content(model=MODEL, contents=_PROMPT, config=config)
            if not response.text:
                raise RuntimeError("the emulator returned no answer")

        return bare

    async def streamed() -> None:
        chunks = await usual.aio.models.generate_content_stream(model=MODEL, contents=_PROMPT, config=config)
        if not [chunk async for chunk in chunks]:
            raise RuntimeError("the emulator returned no answer")

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


def _targets(table: Table) -> Table:
    targets = Table("targets")
    for row in table.rows:
        ratio = table.ratio(row)
        if row.subject == "llm_router" and ratio is not None:
            aim = 2.5 if "streamed" in row.case else 3
            measures = {"reached": Measure((ratio,), "×")}
            targets.add(Row(f"{row.case}: ≥ {aim} × the bare SDK", "llm_router", measures))
    return targets
