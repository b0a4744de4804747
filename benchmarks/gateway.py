"""The gateway: what a call through it costs in CPU time, beside a bare relay of the same bytes and others."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
from _fleet import child
from _harness import Measure, Report, Row, Scale, Table, call_rows, calls_per_second
from _peers import NotInstalledError
from _proxies import PROXIES, Proxy
from _subjects import MODEL

if TYPE_CHECKING:
    import aiohttp

__all__ = ["run"]

_BASELINE = "bare relay"
_OURS = {
    "llm_router": "10 keys; reserves and settles; without tokens and observers",
    "llm_router, watched": "the same with tokens, /metrics and the page, as `llm-router serve` has them",
}
_NOTES = {_BASELINE: "starlette, uvicorn and aiohttp, with one key, and nothing else", **_OURS}
_AIM = 1.8
_LITELLM = PROXIES[0].name
_LESS = 25
"""How many times less than LiteLLM's proxy a call is to cost."""

_IN_FLIGHT = 16
_FACTOR = 6
"""How much longer runs are here than elsewhere, because a call takes about a millisecond."""

_PROMPT = "Say in one sentence what a token bucket is."
_BODY = json.dumps({"contents": [{"parts": [{"text": _PROMPT}]}]}).encode()
_METHODS = {"whole": "generateContent", "streamed": "streamGenerateContent?alt=sse"}


@attrs.frozen
class _Subject:
    """What is measured.

    Attributes:
        note: What it is.
        calls: A call of it by case, for the cases that it can do.
        spent: Tells how many seconds of CPU time its process has used.
    """

    note: str
    calls: Mapping[str, Callable[[], Awaitable[None]]]
    spent: Callable[[], Awaitable[float]]


async def run(scale: Scale) -> Report:
    """Measure calls through each of them."""
    import aiohttp  # noqa: PLC0415 - an extra

    table = Table.about(
        f"gateway: CPU time per call of the serving process, {_IN_FLIGHT} in flight",
        "the client, the emulator behind it and each subject are processes of their own, HTTP on loopback",
        "calls: by the client through this gateway; on few cores the emulator bounds them",
    )
    missing: list[Row] = []
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        emulator = stack.enter_context(child("emulator", {}))
        subjects = {}
        for name, note in _NOTES.items():
            served = stack.enter_context(child("gateway", {"subject": name, "emulator": emulator}))
            subjects[name] = _own(client, served, note)
        for proxy in PROXIES:
            try:
                subjects[proxy.name] = stack.enter_context(_other(client, proxy, emulator))
            except NotInstalledError as error:
                missing.append(Row(next(iter(_METHODS)), proxy.name, note=str(error)))
        for case in _METHODS:
            able = {name: each for name, each in subjects.items() if case in each.calls}
            samplers = {name: partial(_sample, each, case, scale) for name, each in able.items()}
            notes = {name: each.note for name, each in able.items()}
            table.add(*await call_rows(case, _BASELINE, samplers, scale.runs, notes), *missing)
            missing = []
    return Report("gateway", [table, _targets(table)])


def _own(client: aiohttp.ClientSession, served: Mapping[str, str], note: str) -> _Subject:
    async def spent() -> float:
        async with client.get(served["url"] + "/cpu") as answer:
            return float(await answer.text())

    return _Subject(note, _gemini_calls(client, served["url"], served["token"]), spent)


@contextmanager
def _other(client: aiohttp.ClientSession, proxy: Proxy, emulator: str) -> Iterator[_Subject]:
    with proxy.serving(emulator) as served:

        async def spent() -> float:
            return served.cpu_seconds()

        make = _chat_calls if proxy.chats else _gemini_calls
        calls = {
            case: call
            for case, call in make(client, served.url, served.token).items()
            if proxy.streams or case != "streamed"
        }
        yield _Subject(f"{served.version}; {proxy.lacks}", calls, spent)


def _gemini_calls(
    client: aiohttp.ClientSession, url: str, token: str
) -> dict[str, Callable[[], Awaitable[None]]]:
    headers = {"x-goog-api-key": token, "content-type": "application/json"}
    return {
        case: partial(_call, client, f"{url}/v1beta/models/{MODEL}:{method}", headers, _BODY)
        for case, method in _METHODS.items()
    }


def _chat_calls(
    client: aiohttp.ClientSession, url: str, token: str
) -> dict[str, Callable[[], Awaitable[None]]]:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": _PROMPT}]}
    bodies = {case: json.dumps({**asked, "stream": case == "streamed"}).encode() for case in _METHODS}
    return {
        case: partial(_call, client, f"{url}/v1/chat/completions", headers, body)
        for case, body in bodies.items()
    }


async def _call(client: aiohttp.ClientSession, url: str, headers: Mapping[str, str], sent: bytes) -> None:
    async with client.post(url, data=sent, headers=headers) as answer:
        body = await answer.read()
        if answer.status != 200 or MODEL.encode() not in body:
            raise RuntimeError(f"the answer is {answer.status}: {body[:200]!r}")


async def _sample(subject: _Subject, case: str, scale: Scale) -> Mapping[str, float]:
    calls = 0

    async def counted() -> None:
        nonlocal calls
        await subject.calls[case]()
        calls += 1

    before = await subject.spent()
    rate = await calls_per_second(counted, _IN_FLIGHT, _FACTOR * scale.seconds)
    return {"CPU per call": (await subject.spent() - before) / calls * 1e6, "calls": rate}


def _targets(table: Table) -> Table:
    targets = Table("targets")
    for row in table.rows:
        ratio, peer = table.ratio(row), table.find(row.case, _LITELLM)
        if row.subject not in _OURS or ratio is None:
            continue
        reached = {f"≤ {_AIM} × the bare relay": ratio}
        if peer is not None and peer.measures:
            less = peer.measures["CPU per call"].median / row.measures["CPU per call"].median
            reached[f"≥ {_LESS} × less than {_LITELLM}"] = less
        for aim, value in reached.items():
            targets.add(Row(f"{row.case}: {aim}", row.subject, {"reached": Measure((value,), "×")}))
    return targets
