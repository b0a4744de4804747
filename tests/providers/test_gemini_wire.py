"""What is sent over the wire: the same body as the SDK's own, and what the environment adds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google import genai
from google.genai import types

from llm_router import Deployment
from llm_router.domain.request import Request
from llm_router.providers._gemini_aiohttp import AiohttpTransport
from llm_router.providers._gemini_config import DEFAULT_SAFETY
from llm_router.providers._gemini_transport import ON_DISPATCH
from llm_router.providers.gemini import GeminiProvider

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer


PROXIES = ("http_proxy", "https_proxy", "ws_proxy", "wss_proxy", "all_proxy", "no_proxy")
SETTINGS = [
    types.SafetySetting(category=types.HarmCategory(category), threshold=types.HarmBlockThreshold(threshold))
    for category, threshold in DEFAULT_SAFETY.items()
]
TURNS = [
    {
        "role": "user",
        "parts": [{"text": "Hello?"}, {"inline_data": {"mime_type": "image/png", "data": b"x"}}],
    },
    {"role": "model", "parts": [{"text": "Hello."}]},
    {"role": "user", "parts": [{"text": "And now?"}]},
]
WEATHER = {"name": "weather", "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}
LONG: dict[str, Any] = {
    "top_k": 3,
    "stop_sequences": ["."],
    "response_mime_type": "application/json",
    "response_schema": {"type": "OBJECT", "properties": {"answer": {"type": "STRING"}}},
    "thinking_config": {"thinking_budget": 0},
    "tools": [{"function_declarations": [WEATHER]}],
    "http_options": {"extra_body": {"labels": {"a": "b"}}},
}


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("request_", "config"),
    [
        (Request(contents="Hello?"), {}),
        (Request(contents=TURNS), {}),
        (
            Request(contents="Hello?", system_instruction="Be brief.", max_output_tokens=7, temperature=1),
            {"system_instruction": "Be brief.", "max_output_tokens": 7, "temperature": 1},
        ),
        (
            Request(contents="Hello?", system_instruction=types.Part(text="Be brief.")),
            {"system_instruction": types.Part(text="Be brief.")},
        ),
        (Request(contents="Hello?", config=LONG), LONG),
        (Request(contents="Hello?", config=types.GenerateContentConfig(**LONG)), LONG),
    ],
    ids=["text", "turns", "named", "instruction", "dict", "model"],
)
@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # the SDK's own session
async def test_body_is_what_the_sdk_sends(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    request_: Request,
    config: dict[str, Any],
) -> None:
    """The body equals the SDK's own, byte for byte, however the adapter prepares the config."""
    await open_provider(scripted.url).generate(deployment, request_)
    options = types.HttpOptions(base_url=scripted.url, api_version="v1beta")
    client = genai.Client(api_key="x", http_options=options)
    await client.aio.models.generate_content(
        model=deployment.model,
        contents=request_.contents,
        config=types.GenerateContentConfig(
            safety_settings=SETTINGS,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            **config,
        ),
    )
    await client.aio.aclose()
    (_, ours), (_, theirs) = scripted.requests
    assert ours == theirs


async def test_requests_do_not_change_each_other(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """The config that requests share is the same before and after a request with more."""
    provider = open_provider(scripted.url)
    plain = Request(contents="Hello?")
    rich = Request(
        contents="Hello?",
        temperature=0.5,
        system_instruction="Be brief.",
        config=LONG,
        safety_settings={"HARASSMENT": "OFF"},
    )
    for request in (plain, rich, plain, rich):
        await provider.generate(deployment, request)
    bodies = scripted.bodies
    assert bodies[0] == bodies[2] != bodies[1] == bodies[3]


async def test_a_request_makes_no_trip_to_a_thread(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    no_proxies: None,
) -> None:
    """A request looks nothing up in a thread, which would cost more than the HTTP itself."""
    provider = open_provider(scripted.url)
    trips = []
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", lambda *work: trips.append(work))
    await provider.generate(deployment, Request(contents="Hello?"))
    assert trips == []


async def test_proxy_of_the_environment(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    no_proxies: None,
) -> None:
    """A proxy in the environment is used."""
    monkeypatch.setenv("http_proxy", scripted.url)
    await open_provider("http://gemini.invalid").generate(deployment, Request(contents="Hello?"))
    ((head, _),) = scripted.requests
    assert head.startswith("POST http://gemini.invalid/v1beta/models/gemini-test:generateContent HTTP/1.1")


async def test_login_of_netrc_is_not_sent(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    no_proxies: None,
) -> None:
    """A login for the host, meant for other programs, is not sent with the key."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login user password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    await open_provider(scripted.url).generate(deployment, Request(contents="Hello?"))
    ((head, _),) = scripted.requests
    assert "authorization" not in head.lower()


async def test_what_a_slow_reader_does_not_take_is_not_read_ahead() -> None:
    """Of a long stream little more than 256 KiB is held in memory; the rest waits at the provider."""
    served = 2**22

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {served}\r\n\r\n"
        writer.write(head.encode() + bytes(served))
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    transport = AiohttpTransport()
    token = ON_DISPATCH.set(lambda: None)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        answer = await transport.exchange("POST", url, {}, b"{}")
        content = answer._response.content
        for _ in range(200):
            await asyncio.sleep(0)
        assert 0 < content.total_bytes < 2**20
        assert sum([len(piece) async for piece in answer.pieces()]) == served
        await transport.aclose()
    ON_DISPATCH.reset(token)
