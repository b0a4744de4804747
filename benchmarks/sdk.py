"""The real SDK: google-genai calls per second through the router and without it, on the same emulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _fleet import child
from _harness import Measure, Report, Row, Scale, Table, calls_per_second, in_turn
from _subjects import MODEL, deployments

from llm_router import Router

__all__ = ["run"]

_PROMPT = "Say in one sentence what a token bucket is."
_KEYS = 10
_FACTOR = 4
"""A call takes about a millisecond: longer runs than elsewhere, for as many calls."""


async def run(scale: Scale) -> Report:
    """Measure calls through the SDK."""
    table = Table.about(
        "google-genai calls per second against the emulator (a process of its own, over HTTP on loopback)",
        "both clients are in one process and take turns; the bare SDK reserves nothing and has one key, and",
        "is given the same four safety settings: turning them into JSON costs the SDK most of a millisecond",
    )
    with child("emulator", {}) as url:
        for in_flight in (1,) if scale.short else (1, 16):
            table.add(*await _compare(scale, url, in_flight))
    return Report("sdk", [table, _aims(table)])


async def _compare(scale: Scale, url: str, in_flight: int) -> list[Row]:
    case = f"{in_flight} in flight"
    client, config = _bare(url)
    pool = deployments(_KEYS)

    async def bare() -> None:
        response = await client.aio.models.generate_content(model=MODEL, contents=_PROMPT, config=config)
        if not response.text:
            raise RuntimeError("the emulator gave no answer")

    async with Router(pool, base_url=url) as router:

        async def routed() -> None:
            (await router.send(_PROMPT)).raise_for_error()

        async def sample_bare() -> Mapping[str, float]:
            return {"calls": await calls_per_second(bare, in_flight, _FACTOR * scale.seconds)}

        async def sample_routed() -> Mapping[str, float]:
            return {"calls": await calls_per_second(routed, in_flight, _FACTOR * scale.seconds)}

        found = await in_turn({"google-genai": sample_bare, "llm_router": sample_routed}, scale.runs)
    await client.aio.aclose()
    baseline = (case, "google-genai")
    return [
        Row(case, name, {"calls": Measure(samples["calls"], "/s")}, baseline)
        for name, samples in found.items()
    ]


def _bare(url: str) -> tuple[Any, Any]:
    from google import genai  # noqa: PLC0415 - slow to import, and not always measured

    client = genai.Client(api_key="emulated-secret-0", http_options=genai.types.HttpOptions(base_url=url))
    settings = [
        genai.types.SafetySetting(category=f"HARM_CATEGORY_{name}", threshold="BLOCK_NONE")
        for name in ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
    ]
    return client, genai.types.GenerateContentConfig(safety_settings=settings)


def _aims(table: Table) -> Table:
    aims = Table("aims")
    for row in table.rows:
        ratio = table.ratio(row)
        if row.subject == "llm_router" and ratio is not None:
            measures = {"reached": Measure((ratio,), "×")}
            aims.add(Row(f"{row.case}: ≥ 0.97 × the bare SDK", "llm_router", measures))
    return aims
