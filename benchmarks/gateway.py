"""The gateway: what a call through it costs in CPU time, beside a bare relay of the same bytes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from _fleet import child
from _harness import Measure, Report, Row, Scale, Table, call_rows, calls_per_second
from _subjects import MODEL

if TYPE_CHECKING:
    import aiohttp

__all__ = ["run"]

_BASELINE = "bare relay"
_SUBJECTS = {
    _BASELINE: "starlette, uvicorn and aiohttp, with one key, and nothing else",
    "llm_router": "10 keys; reserves and settles; without tokens and observers",
    "llm_router, watched": "the same with tokens, /metrics and the page, as `llm-router serve` has them",
}
_AIM = 1.8
_IN_FLIGHT = 16
_FACTOR = 6
"""How much longer runs are here than elsewhere, because a call takes about a millisecond."""

_BODY = json.dumps(
    {"contents": [{"parts": [{"text": "Say in one sentence what a token bucket is."}]}]}
).encode()
_METHODS = {"whole": "generateContent", "streamed": "streamGenerateContent?alt=sse"}


async def run(scale: Scale) -> Report:
    """Measure calls through each of them."""
    import aiohttp  # noqa: PLC0415 - an extra

    table = Table.about(
        f"gateway: CPU time per call of the serving process, {_IN_FLIGHT} in flight",
        "the client, the emulator behind it and each subject are processes of their own, HTTP on loopback",
        "calls: by the client through this gateway; on few cores the emulator bounds them",
    )
    with ExitStack() as stack:
        emulator = stack.enter_context(child("emulator", {}))
        served = {
            name: stack.enter_context(child("gateway", {"subject": name, "emulator": emulator}))
            for name in _SUBJECTS
        }
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            for case, method in _METHODS.items():
                samplers = {
                    name: partial(_sample, partial(_call, client, where, method), client, where, scale)
                    for name, where in served.items()
                }
                table.add(*await call_rows(case, _BASELINE, samplers, scale.runs, _SUBJECTS))
    return Report("gateway", [table, _targets(table)])


async def _sample(
    work: Callable[[], Awaitable[object]],
    client: aiohttp.ClientSession,
    where: Mapping[str, str],
    scale: Scale,
) -> Mapping[str, float]:
    calls = 0

    async def counted() -> None:
        nonlocal calls
        await work()
        calls += 1

    async def spent() -> float:
        async with client.get(where["url"] + "/cpu") as answer:
            return float(await answer.text())

    before = await spent()
    rate = await calls_per_second(counted, _IN_FLIGHT, _FACTOR * scale.seconds)
    return {"CPU per call": (await spent() - before) / calls * 1e6, "calls": rate}


async def _call(client: aiohttp.ClientSession, where: Mapping[str, str], method: str) -> None:
    url = f"{where['url']}/v1beta/models/{MODEL}:{method}"
    headers = {"x-goog-api-key": where["token"], "content-type": "application/json"}
    async with client.post(url, data=_BODY, headers=headers) as answer:
        body = await answer.read()
        if answer.status != 200 or b"text" not in body:
            raise RuntimeError(f"the answer is {answer.status}: {body[:200]!r}")


def _targets(table: Table) -> Table:
    targets = Table("targets")
    for row in table.rows:
        ratio = table.ratio(row)
        if row.subject != _BASELINE and ratio is not None:
            measures = {"reached": Measure((ratio,), "×")}
            targets.add(Row(f"{row.case}: ≤ {_AIM} × the bare relay", row.subject, measures))
    return targets
