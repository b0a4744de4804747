"""The gateway over HTTP, byte by byte."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from functools import partial
from typing import Any

import aiohttp
import pytest

from llm_router.emulator import Fault
from llm_router.engine.overview import Overview
from llm_router.gateway import app

PROJECTS = ("alpha", "beta")
Served = Any
"""What the fixture of that name gives."""

GENERATE = "/v1beta/models/flash:generateContent"
STREAM = "/v1beta/models/flash:streamGenerateContent?alt=sse"
HELLO = {"contents": [{"parts": [{"text": "hello"}]}]}


async def _call(
    served: Served, path: str, body: Any = None, *, verb: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    data = (
        body
        if isinstance(body, bytes | io.BytesIO)
        else json.dumps(body).encode()
        if body is not None
        else None
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(verb, served.url + path, data=data, headers=named) as answer,
    ):
        return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()


async def test_an_answer_passes_with_its_trace(served: Served) -> None:
    """A call answers 200 with the model's words, and headers say who answered; it takes one request."""
    before = served.used() if served.gateway.router.loop else 0
    status, headers, body = await _call(served, GENERATE, HELLO, x_goog_api_key="anything")
    assert (status, b"echo: hello" in body) == (200, True)
    assert headers["x-llm-router-key-id"] in {"alpha", "beta"}
    assert (headers["x-llm-router-model"], headers["x-llm-router-attempts"]) == ("flash", "1")
    assert int(headers["content-length"]) == len(body)
    assert served.used() == before + 1


async def test_a_stream_passes_in_pieces(served: Served) -> None:
    """A stream is passed on as server-sent events, whole."""
    status, headers, body = await _call(served, STREAM, HELLO)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert body.count(b"data: ") > 1
    assert "content-length" not in headers


async def test_a_429_of_one_key_goes_to_the_other(served: Served) -> None:
    """The client sees the second key's answer, and that there were two attempts."""
    served.emulator.inject(Fault.bare_429(), times=1)
    status, headers, _ = await _call(served, GENERATE, HELLO)
    assert (status, headers["x-llm-router-attempts"]) == (200, "2")


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1beta/models/flash:generateContent", b"{", 400),
        ("/v1/chat/completions", b"[]", 400),
        ("/v1beta/nothing", b"{}", 404),
        ("/", b"", 404),
        ("/metrics", b"", 404),
        ("/v1beta/models/..%2fflash:generateContent", b"{}", 404),
        ("/v1beta/models/unknown:generateContent", b'{"contents": []}', 404),
    ],
)
async def test_what_cannot_be_meant_is_refused(served: Served, path: str, body: bytes, expected: int) -> None:
    """Broken JSON, unknown paths and models are told in the client's protocol, and take no quota."""
    arrived = served.emulator.requests
    status, headers, answer = await _call(served, path, body)
    assert (status, headers["content-type"]) == (expected, "application/json; charset=UTF-8")
    error = json.loads(answer)["error"]
    assert ("type" if path.startswith("/v1/") else "status") in error
    assert served.emulator.requests == arrived


async def test_an_unknown_header_of_the_routers_is_refused(served: Served) -> None:
    """A typing error in a wish is told, and not ignored."""
    status, _, body = await _call(served, GENERATE, HELLO, x_llm_router_workloda="light")
    assert (status, b"x-llm-router-workload" in body) == (400, True)
    status, headers, _ = await _call(
        served, "/v1beta/models/workload:light:generateContent", HELLO, x_llm_router_max_wait="0"
    )
    assert (status, headers["x-llm-router-model"]) == (200, "lite")


async def test_who_waits_how_is_said_in_headers(served: Served) -> None:
    """A tenant and an urgency are passed on; an urgency that there is not is refused."""
    wish = {"x_llm_router_tenant": "acme", "x_llm_router_urgency": "batch"}
    assert (await _call(served, GENERATE, HELLO, **wish))[0] == 200
    status, _, body = await _call(served, GENERATE, HELLO, x_llm_router_urgency="soon")
    assert (status, b"must be interactive or batch" in body) == (400, True)


async def test_no_quota_is_a_429_with_a_delay(served: Served) -> None:
    """When the keys of a model are used up, the client hears when to come back."""
    path = "/v1beta/models/tiny:generateContent"
    found = [await _call(served, path, HELLO) for _ in range(3)]
    assert [status for status, _, _ in found] == [200, 200, 429]
    assert 0 < float(found[-1][1]["retry-after"]) <= 61
    assert served.used("tiny") == 2


async def test_health_without_a_store(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway lives all the same, and says what is the matter, soon."""

    async def hang(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(app, "_PATIENCE", 0.01)
    monkeypatch.setattr(Overview, "report", hang)
    status, _, body = await _call(served, "/healthz", verb="GET")
    assert (status, json.loads(body)) == (200, {"status": "ok", "state": "store_lost"})


async def test_health(served: Served) -> None:
    """It says that it lives, and that a call has a chance; to HEAD without a body."""
    assert (await _call(served, GENERATE, HELLO))[0] == 200
    status, _, body = await _call(served, "/healthz", verb="GET")
    found = json.loads(body)
    assert (status, found["status"], found["state"], found["health"]["healthy"]) == (
        200,
        "ok",
        "healthy",
        True,
    )
    assert len(found["keys"]) == 12
    assert found["keys"][0]["limits"]["rpm"]["remaining"] <= 10_000
    todays = [row["today"] for row in found["keys"]]
    for field in ("requests", "input_tokens", "output_tokens"):
        assert sum(today[field] for today in todays) > 0
    assert "AIza" not in body.decode()
    assert (await _call(served, "/readyz", verb="GET"))[::2] == (200, b'{"status":"ok"}')
    assert (await _call(served, "/healthz", verb="HEAD"))[::2] == (200, b"")


async def test_it_is_not_ready_where_no_call_has_a_chance(served: Served) -> None:
    """While nothing of the pool is of use, ``/readyz`` is a 503; as soon as something is, it is ready."""
    keys = served.gateway.router.keys
    for project in PROJECTS:
        served.ask(partial(keys.disable, project))
    try:
        assert (await _call(served, "/readyz", verb="GET"))[::2] == (503, b'{"status":"unavailable"}')
        assert (await _call(served, "/readyz", verb="HEAD"))[::2] == (503, b"")
        assert (await _call(served, "/healthz", verb="GET"))[0] == 200  # it lives all the same
        served.ask(partial(keys.enable, "beta"))
        assert (await _call(served, "/readyz", verb="GET"))[::2] == (200, b'{"status":"ok"}')
    finally:
        for project in PROJECTS:
            served.ask(partial(keys.enable, project))


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
async def test_a_web_page_is_kept_out(served: Served, headers: dict[str, str]) -> None:
    """Without tokens, another host or origin than this machine's is refused."""
    assert (await _call(served, GENERATE, HELLO, **headers))[0] == 403
    assert (await _call(served, GENERATE, HELLO, origin=served.url))[0] == 200


async def test_a_page_of_another_site_cannot_even_ask(served: Served) -> None:
    """Browsers send no origin with an image or a script, but say whose page it is for; links are let in."""
    models = "/v1beta/models"
    own = {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"}
    assert (await _call(served, models, verb="GET", **own))[0] == 200
    for site in ("cross-site", "same-site"):  # the latter is another port of this machine
        image = {"sec_fetch_site": site, "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
        frame = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}
        link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        found = [(await _call(served, models, verb="GET", **each))[0] for each in (image, frame, link)]
        assert found == [403, 403, 200]


@pytest.mark.parametrize(
    "hosts",
    [
        "",
        "host: localhost\r\nhost: evil.example\r\n",
        "host: evil.example\r\nhost: localhost\r\n",
        "host: evil.example@localhost\r\n",
        "host: localhost#.evil.example\r\n",
        "host: localhost\r\norigin: http://evil.example\r\norigin: http://localhost\r\n",
    ],
)
async def test_a_host_that_can_be_read_in_two_ways_is_refused(served: Served, hosts: str) -> None:
    """Whatever a proxy in between would make of it."""
    reader, writer = await asyncio.open_connection(*served.url.removeprefix("http://").split(":"))
    writer.write(f"GET /v1beta/models HTTP/1.1\r\n{hosts}connection: close\r\n\r\n".encode())
    assert (await reader.read(100)).startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
async def test_too_large_a_body_is_refused(served: Served) -> None:
    """More than 64 MiB is a 413 before it is sent; 20 MB go through."""
    image = {"inlineData": {"mimeType": "image/png", "data": "eHh4" * 5_000_000}}
    large = io.BytesIO(json.dumps({"contents": [{"parts": [{"text": "hello"}, image]}]}).encode())
    status, _, _ = await _call(served, GENERATE, large)
    assert status == 200
    with socket.create_connection(served.url.removeprefix("http://").split(":")) as client:
        client.sendall(
            f"POST {GENERATE} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {1 << 30}\r\n\r\n".encode()
        )
        assert client.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("fault", [Fault.stream_cut(after=1), Fault.stream_drop(after=1)])
async def test_a_cut_stream_is_not_a_whole_one(served: Served, fault: Fault) -> None:
    """If the provider's stream breaks off, so does the client's."""
    served.emulator.inject(fault, times=1)
    with pytest.raises(aiohttp.ClientPayloadError):
        await _call(served, STREAM, HELLO)


@pytest.mark.slow
async def test_a_client_that_leaves_ends_its_call(served: Served) -> None:
    """Soon after the client went away, nothing is under way, and its request is settled."""
    for fault in (Fault.hang(), Fault.stream_hang(after=1)):
        served.emulator.inject(fault, times=1)
        before = served.used()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await _call(served, STREAM, HELLO)
        await asyncio.to_thread(served.until_idle)
        assert served.used() == before + 1
        served.emulator.release()


async def test_an_upload_goes_on_at_the_gateway(served: Served) -> None:
    """The URL of an upload is the gateway's own, as the client calls it."""
    begin = {"x_goog_upload_protocol": "resumable", "x_goog_upload_command": "start"}
    sizes = {"x_goog_upload_header_content_length": "5", "x_goog_upload_header_content_type": "text/plain"}
    _, headers, _ = await _call(served, "/upload/v1beta/files", {"file": {}}, **begin, **sizes)
    url = headers["x-goog-upload-url"]
    assert url.startswith(served.url + "/upload/")
    finish = {"x_goog_upload_command": "upload, finalize", "x_goog_upload_offset": "0"}
    status, _, body = await _call(served, url.removeprefix(served.url), b"hello", **finish)
    name = json.loads(body)["file"]["name"]
    assert (status, (await _call(served, f"/v1beta/{name}", verb="GET"))[0]) == (200, 200)
