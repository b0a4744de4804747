"""The Gemini adapter against servers on loopback, on both HTTP backends of the SDK."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import pytest
from google.genai import Client, types

from llm_router import Deployment, Reply
from llm_router.domain.exchange import Exchange
from llm_router.domain.request import Request
from llm_router.domain.response import Usage
from llm_router.emulator import Fault, GeminiEmulator
from llm_router.errors import ConfigError, ProviderError
from llm_router.providers._gemini_session import HttpBackend
from llm_router.providers.base import FailureKind
from llm_router.providers.gemini import GeminiProvider

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer


HELLO = Request(contents="Hello?")


async def test_answer(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A prompt is answered with text, usage, finish reason and model."""
    reply = await open_provider(emulator.url).generate(deployment, Request(contents="Hello?"))
    assert reply.text
    assert reply.finish_reason == "STOP"
    assert reply.blocked is None
    assert reply.model == "gemini-test"
    assert reply.usage is not None
    assert reply.usage.input_tokens > 0
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert isinstance(reply.raw, types.GenerateContentResponse)
    assert emulator.accepted == 1


async def test_usage_counts_tool_results_as_input(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    answer: dict[str, Any],
) -> None:
    """Tool results count as input, and every other count has its own field."""
    counts = {
        "promptTokenCount": 10,
        "toolUsePromptTokenCount": 5,
        "candidatesTokenCount": 4,
        "thoughtsTokenCount": 3,
        "cachedContentTokenCount": 2,
        "totalTokenCount": 22,
    }
    scripted.reply = make_http(200, answer | {"usageMetadata": counts})
    reply = await open_provider(scripted.url).generate(deployment, HELLO)
    assert reply.usage == Usage(15, 4, 3, 2, 22)


async def test_text_joins_text_parts_without_thoughts(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    answer: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Thoughts and function calls are not text, and the SDK does not warn about them."""
    parts = [
        {"text": "thinking", "thought": True},
        {"text": "Hel"},
        {"functionCall": {"name": "f", "args": {}}},
        {"text": "lo."},
    ]
    scripted.reply = make_http(200, answer | {"candidates": [{"content": {"parts": parts}}]})
    reply = await open_provider(scripted.url).generate(deployment, HELLO)
    assert reply.text == "Hello."
    assert reply.finish_reason is None
    assert not [record for record in caplog.records if record.name.startswith("google")]


@pytest.mark.parametrize("reason", ["SAFETY", "PROHIBITED_CONTENT", "OTHER"])
async def test_blocked_prompt_is_a_reply(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    reason: str,
) -> None:
    """A blocked prompt is a reply with its reason, not an error."""
    emulator.inject(Fault.block(reason))
    reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert (reply.text, reply.blocked, reply.finish_reason) == ("", reason, None)


async def test_blocked_answer_is_a_reply(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A blocked answer is a reply with its finish reason, not an error."""
    emulator.inject(Fault.safety())
    reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert (reply.text, reply.blocked, reply.finish_reason) == ("", "SAFETY", "SAFETY")


async def test_feedback_without_a_reason_is_a_block(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """Prompt feedback means a refused prompt, even if it gives no reason."""
    scripted.reply = make_http(200, {"promptFeedback": {"safetyRatings": []}})
    reply = await open_provider(scripted.url).generate(deployment, HELLO)
    assert reply.blocked == "BLOCKED_REASON_UNSPECIFIED"
    assert reply.usage is None


@pytest.mark.parametrize(
    ("reason", "blocked"),
    [("MAX_TOKENS", None), ("OTHER", None), ("RECITATION", "RECITATION"), ("SPII", "SPII")],
)
async def test_finish_reasons(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    reason: str,
    blocked: str | None,
) -> None:
    """Only a finish reason about the content of the answer is a block."""
    candidate = {"content": {"parts": [{"text": "Hel"}]}, "finishReason": reason}
    scripted.reply = make_http(200, {"candidates": [candidate]})
    reply = await open_provider(scripted.url).generate(deployment, HELLO)
    assert (reply.text, reply.finish_reason, reply.blocked) == ("Hel", reason, blocked)


@pytest.mark.parametrize(
    "reason",
    [
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "OTHER",
        "NO_IMAGE",
        "IMAGE_OTHER",
        "FINISH_REASON_UNSPECIFIED",
    ],
)
async def test_a_failed_answer_is_a_reply(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    reason: str,
) -> None:
    """An answer without content because the model failed is a reply with its reason, after one request."""
    emulator.inject(Fault.no_content(reason))
    reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert (reply.text, reply.failed, reply.finish_reason, reply.blocked) == ("", reason, reason, None)
    assert reply.content is None
    assert reply.usage is not None
    assert reply.usage.input_tokens > 0
    assert emulator.requests == 1


@pytest.mark.filterwarnings("ignore:.* is not a valid FinishReason")  # the SDK's own
@pytest.mark.parametrize("reason", ["MISSING_THOUGHT_SIGNATURE", "MALFORMED_RESPONSE", "SOMETHING_NEW"])
async def test_a_reason_that_the_sdk_may_not_know(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    reason: str,
) -> None:
    """A finish reason that is newer than the SDK is a failure, too, if there is no content."""
    emulator.inject(Fault.no_content(reason))
    reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert (reply.failed, reply.finish_reason) == (reason, reason)


@pytest.mark.parametrize(
    ("parts", "failed"),
    [
        ([], "OTHER"),
        ([{"text": ""}], "OTHER"),
        ([{"text": "hm", "thought": True}], "OTHER"),
        ([{"text": "Hel"}], None),
        ([{"functionCall": {"name": "f"}}], None),
        ([{"executableCode": {"code": "1", "language": "PYTHON"}}], None),
    ],
)
async def test_a_failed_answer_has_no_content(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    parts: Any,
    failed: str | None,
) -> None:
    """Thoughts and empty parts are no content; with content, the caller judges by the finish reason."""
    candidate = {"content": {"parts": parts}, "finishReason": "OTHER"}
    scripted.reply = make_http(200, {"candidates": [candidate]})
    reply = await open_provider(scripted.url).generate(deployment, HELLO)
    assert (reply.failed, reply.finish_reason) == (failed, "OTHER")


@pytest.mark.parametrize("reason", ["MAX_TOKENS", "STOP"])
async def test_an_answer_without_text(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    reason: str,
) -> None:
    """An answer that ends as it may, but without text, is an answer, after one request."""
    emulator.inject(Fault.no_content(reason))
    reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert (reply.text, reply.finish_reason, reply.failed, reply.blocked) == ("", reason, None, None)
    assert reply.content is None
    assert emulator.requests == 1


@pytest.mark.parametrize(
    "limit",
    [{"max_output_tokens": 5}, {"config": {"maxOutputTokens": 5}}],
    ids=["argument", "config"],
)
async def test_an_answer_without_candidates(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    limit: dict[str, int] | dict[str, dict[str, int]],
) -> None:
    """A model that thinks until the limit may answer with its usage alone: an answer without text."""
    emulator.inject(Fault.no_content(""))
    reply = await open_provider(emulator.url).generate(deployment, Request(contents="Hello?", **limit))
    assert (reply.text, reply.finish_reason, reply.failed) == ("", "MAX_TOKENS", None)
    assert (reply.content, reply.model) == (None, "gemini-test")
    assert reply.usage is not None
    assert reply.usage.input_tokens > 0
    assert emulator.requests == 1


async def test_an_answer_of_thoughts_alone(
    open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """Thoughts without an answer reached the model's own limit."""
    async with GeminiEmulator(thought_tokens=64) as emulator:
        emulator.inject(Fault.no_content(""))
        reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert reply.usage is not None
    assert (reply.finish_reason, reply.failed, reply.usage.thinking_tokens) == ("MAX_TOKENS", None, 64)


async def test_an_answer_without_candidates_and_without_a_limit(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A usage alone that nothing explains is an answer that failed, after one request."""
    emulator.inject(Fault.no_content(""))
    reply = await open_provider(emulator.url).generate(deployment, HELLO)
    assert (reply.text, reply.finish_reason, reply.failed) == ("", None, "NO_CANDIDATES")
    assert emulator.requests == 1


async def test_what_is_sent(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
    secret: str,
) -> None:
    """The request has the version, model, key, arguments and safety settings."""
    request = Request(contents="Hello?", system_instruction="Be brief.", max_output_tokens=7, temperature=0.5)
    await open_provider(scripted.url).generate(make_deployment(model="models/gemini-x"), request)
    ((head, _),) = scripted.requests
    assert head.startswith("POST /v1beta/models/gemini-x:generateContent HTTP/1.1")
    assert f"x-goog-api-key: {secret}" in head
    (body,) = scripted.bodies
    assert body["contents"] == [{"role": "user", "parts": [{"text": "Hello?"}]}]
    assert body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert body["generationConfig"] == {"maxOutputTokens": 7, "temperature": 0.5}
    assert {setting["threshold"] for setting in body["safetySettings"]} == {"BLOCK_NONE"}
    assert len(body["safetySettings"]) == 4


async def test_environment_picks_server_but_not_vertex(
    scripted: ScriptedServer, backend: HttpBackend, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GOOGLE_GEMINI_BASE_URL is used; GOOGLE_GENAI_USE_VERTEXAI and other keys are ignored."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", scripted.url)
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "another-key")
    provider = GeminiProvider(http_backend=backend)
    await provider.generate(deployment, HELLO)
    await provider.aclose()
    ((head, _),) = scripted.requests
    assert "/v1beta/models/gemini-test:generateContent" in head
    assert "another-key" not in head


async def test_one_generate_is_one_request_even_with_functions(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """A function call is returned to the caller: the SDK does not call it and send again."""
    called = []

    def weather(city: str) -> str:
        """Return the weather."""
        called.append(city)
        return "rain"

    call = {"functionCall": {"name": "weather", "args": {"city": "Rome"}}}
    scripted.reply = make_http(200, {"candidates": [{"content": {"parts": [call]}}]})
    request = Request(contents="Weather?", config={"tools": [weather]})
    reply = await open_provider(scripted.url).generate(deployment, request)
    assert reply.raw.function_calls[0].name == "weather"
    assert len(scripted.requests) == 1
    assert called == []


async def test_one_generate_is_one_request_even_with_continuation(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """An answer that could be continued is not continued behind the router's back."""
    candidate = {"content": {"parts": [{"text": "Hel"}]}, "finishReason": "CONTINUATION"}
    scripted.reply = make_http(200, {"candidates": [candidate | {"continuationToken": "YWJj"}]})
    async with asyncio.timeout(5):  # the SDK would send again for ever
        reply = await open_provider(scripted.url).generate(deployment, HELLO)
    assert reply.finish_reason == "CONTINUATION"
    assert len(scripted.requests) == 1


async def test_redirect_is_not_followed(
    scripted: ScriptedServer,
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """A redirect would send the key to another host: it is a failure of the path instead."""
    scripted.reply = make_http(307, b"", [f"Location: {emulator.url}/v1beta/models/x:generateContent"])
    with pytest.raises(ProviderError) as caught:
        await open_provider(scripted.url).generate(deployment, HELLO)
    assert (caught.value.kind, caught.value.code) == (FailureKind.NETWORK, 307)
    assert emulator.requests == 0


async def test_cookies_do_not_travel_between_keys(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
    make_http: Callable[..., bytes],
    answer: dict[str, Any],
) -> None:
    """A cookie set for one key is not sent with another."""
    scripted.reply = make_http(200, answer, ["Set-Cookie: who=first; Path=/"])
    provider = open_provider(scripted.url.replace("127.0.0.1", "localhost"))
    await provider.generate(make_deployment("secret-1", "key-1"), HELLO)
    await provider.generate(make_deployment("secret-2", "key-2"), HELLO)
    assert [head for head, _ in scripted.requests if "cookie" in head.lower()] == []
    assert len(scripted.requests) == 2


async def test_cancelling_aborts_the_request(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
    until_holding: Callable[..., Coroutine[Any, Any, None]],
) -> None:
    """Cancellation closes the connection and leaves no task; its traceback does not contain the key."""
    provider = open_provider(emulator.url)
    await provider.generate(deployment, HELLO)
    before = asyncio.all_tasks()
    emulator.inject(Fault.hang())
    task = asyncio.create_task(provider.generate(deployment, HELLO))
    await until_holding(emulator)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("enough",)
    assert_no_secret(caught.value)
    await until_holding(emulator, 0)
    left = {other for other in asyncio.all_tasks() - before if "generate" in repr(other)}
    assert left == set()
    assert emulator.requests == 2


async def test_deadline_of_the_caller_cancels(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """asyncio.timeout() works around a call as around any other."""
    emulator.inject(Fault.hang())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await open_provider(emulator.url).generate(deployment, HELLO)


async def _failure(answer: Awaitable[Reply]) -> ProviderError:
    """Return the error of a call, with a traceback that begins here."""
    with pytest.raises(ProviderError) as caught:
        await answer
    return caught.value


@pytest.mark.parametrize(
    "secret",
    ["AQ.first\nAQ.second", "AQ.first\r\nx-other: 1", "AQ.\x00", "AQ.\x7f", "AQ.\tb", "AQ.é", "AQ.☃", " \n"],
    ids=repr,
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_key_that_no_header_can_have(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
    assert_no_secret: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    secret: str,
    streamed: bool,
) -> None:
    """It is a failure of the key, before anything is sent and without a charge, and is not shown."""
    monkeypatch.setenv("GOOGLE_API_KEY", "another-key")
    provider, deployment = open_provider(scripted.url), make_deployment(secret)
    if streamed:
        error = await _failure(anext(provider.stream(deployment, HELLO, lambda: None)))
    else:
        error = await _failure(provider.generate(deployment, HELLO))
    assert (error.kind, error.scope, error.charged) == (FailureKind.KEY, "key", False)
    assert scripted.connections == 0
    assert_no_secret(error, secret[:5] if secret.strip() else "another-key")


async def test_a_key_with_space_around_it(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
) -> None:
    """White space around a key, as an editor may leave it, is not sent."""
    await open_provider(scripted.url).generate(make_deployment(" AQ.key\n"), HELLO)
    ((head, _),) = scripted.requests
    assert "x-goog-api-key: AQ.key\r\n" in head


async def test_a_header_that_cannot_be_sent(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """It is a failure of the request, before anything is sent and without a charge."""
    wish = {"http_options": {"headers": {"x-trace": "1\n2"}}}
    with pytest.raises(ProviderError) as caught:
        await open_provider(scripted.url).generate(deployment, Request(contents="x", config=wish))
    error = caught.value
    assert (error.kind, error.scope, error.charged) == (FailureKind.REQUEST, "request", False)
    assert scripted.connections == 0


async def test_no_warning_of_keys_that_are_not_used(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The keys of the environment are not those of the router: the SDK does not speak of them."""
    monkeypatch.setenv("GOOGLE_API_KEY", "one")
    monkeypatch.setenv("GEMINI_API_KEY", "another")
    caplog.set_level(0)
    provider = open_provider(scripted.url)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            await provider.generate(make_deployment(f"secret-{number}", f"key-{number}"), HELLO)
    assert not [record for record in caplog.records if "_API_KEY" in record.getMessage()]
    Client(vertexai=False)
    assert [record for record in caplog.records if "_API_KEY" in record.getMessage()]


@pytest.mark.slow
def test_two_event_loops(
    backend: HttpBackend, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    """A provider works over two asyncio.run() calls, and leaves nothing open after either."""
    provider = GeminiProvider(http_backend=backend)

    async def main() -> int:
        async with GeminiEmulator() as emulator:
            provider._base_url = emulator.url
            await asyncio.gather(*(provider.generate(deployment, HELLO) for _ in range(3)))
            return emulator.accepted

    accepted = [asyncio.run(main()), asyncio.run(main())]
    assert accepted == [3, 3]
    assert len(provider._sessions) == 1
    provider._sessions.clear()
    gc.collect()
    assert "Unclosed" not in caplog.text


@pytest.mark.slow
def test_loop_closed_by_hand(
    scripted_url: str, backend: HttpBackend, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    """A session ends with a loop that is closed without shutting down, and aiohttp does not warn."""
    provider = GeminiProvider(base_url=scripted_url, http_backend=backend)
    with warnings.catch_warnings():
        # asyncio itself warns about the sockets of such a loop.
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(2):
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(provider.generate(deployment, HELLO)).text == "Hello."
            loop.close()
        del provider, loop
        gc.collect()
    assert "Unclosed" not in caplog.text


@pytest.mark.slow
async def test_forgotten_provider_closes_itself(
    emulator: GeminiEmulator, backend: HttpBackend, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    """A provider that is dropped without aclose() leaves no unclosed session."""
    provider = GeminiProvider(base_url=emulator.url, http_backend=backend)
    await provider.generate(deployment, HELLO)
    del provider
    gc.collect()
    for _ in range(20):
        await asyncio.sleep(0)
    gc.collect()
    assert "Unclosed" not in caplog.text


@pytest.mark.slow
async def test_nothing_runs_after_aclose(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """Once a provider is closed, collecting its clients starts no task, even after a failure."""
    scripted.reply = make_http(503)
    provider = open_provider(scripted.url)
    gc.disable()  # the traceback of the failure keeps the client alive, in a cycle
    try:
        with pytest.raises(ProviderError):
            await provider.generate(deployment, HELLO)
        await provider.aclose()
        before = asyncio.all_tasks()
        gc.collect()
        assert asyncio.all_tasks() <= before
    finally:
        gc.enable()


async def test_a_body_that_is_being_read_breaks_off_when_the_provider_is_closed(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """Its reader does not wait for ever: in a plain call, in a stream, and in both kinds of relayed ones."""
    scripted.reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    provider = open_provider(scripted.url)

    async def stream() -> None:
        async for _ in provider.stream(deployment, HELLO, lambda: None):
            pass

    async def relay(method: str) -> None:
        body = b'{"contents": [{"parts": [{"text": "hello"}]}]}'
        exchange = Exchange(path=f"/v1beta/models/{deployment.model}:{method}", body=body)
        async for _ in provider.relay(deployment, provider.read_exchange(exchange), lambda: None):
            pass

    calls = (
        provider.generate(deployment, HELLO),
        stream(),
        relay("generateContent"),
        relay("streamGenerateContent"),
    )
    for sent, call in enumerate(calls, start=1):
        task = asyncio.ensure_future(call)
        while len(scripted.requests) < sent:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)  # for the beginning of the body to arrive
        await provider.aclose()
        await asyncio.wait([task], timeout=10.0)
        assert task.done(), sent
        assert isinstance(task.exception(), ProviderError), sent


async def test_aclose_twice_and_use_again(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """Closing is idempotent, even before the first use, and a later request opens new connections."""
    provider = open_provider(emulator.url)
    await provider.aclose()
    await provider.generate(deployment, HELLO)
    await provider.aclose()
    await provider.aclose()
    await provider.generate(deployment, HELLO)
    assert emulator.accepted == 2


def _ssl_contexts() -> int:
    gc.collect()
    return sum(isinstance(thing, ssl.SSLContext) for thing in gc.get_objects())


@pytest.mark.slow
async def test_a_thousand_keys_share_one_session(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
) -> None:
    """There is one connection, one SSL context, and one client per key, made at its first request."""
    provider = open_provider(scripted.url)
    deployments = [make_deployment(f"secret-{n}", f"key-{n}") for n in range(1000)]
    await provider.generate(deployments[0], HELLO)
    contexts = _ssl_contexts()
    (session,) = provider._sessions.values()
    clients = {id(session.client(deployment.key)) for deployment in deployments}
    assert {id(session.client(deployment.key)) for deployment in deployments} == clients
    for deployment in deployments[::100]:
        await provider.generate(deployment, HELLO)
    assert len(clients) == 1000
    # One for each key or request would be ten or more; threads that other tests have left may make one.
    assert _ssl_contexts() < contexts + 10
    assert scripted.connections == 1
    sent = {head.split("x-goog-api-key: ")[1].split("\r\n")[0] for head, _ in scripted.requests[1:]}
    assert sent == {f"secret-{n}" for n in range(0, 1000, 100)}


async def test_new_secret_of_a_key_is_used(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
) -> None:
    """A key whose secret has changed gets a new client."""
    provider = open_provider(scripted.url)
    await provider.generate(make_deployment("old-secret"), HELLO)
    await provider.generate(make_deployment("new-secret"), HELLO)
    assert ["x-goog-api-key: new-secret" in head for head, _ in scripted.requests] == [False, True]


@pytest.mark.slow
def test_import_is_light() -> None:
    """Importing and making a provider loads neither the SDK nor an HTTP library."""
    program = (
        "import sys, llm_router.providers.gemini as gemini; gemini.GeminiProvider();"
        "print(sorted({'google.genai', 'aiohttp', 'httpx', 'httpx2', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("step", ["asyncio.run(provider.prepare())", "provider.validate(HELLO)"])
@pytest.mark.slow
def test_what_takes_long_is_done_before_the_first_request(
    backend: HttpBackend, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing or validating loads the SDK, its HTTP library, and the certificates."""
    monkeypatch.delenv("SSL_CERT_FILE")
    program = f"""
import asyncio, ssl, sys
from llm_router.domain.request import Request
from llm_router.providers.gemini import GeminiProvider
HELLO, provider = Request(contents="Hello?"), GeminiProvider(http_backend={backend!r})
{step}
loaded = set(sys.modules)
ssl.create_default_context = None
asyncio.run(provider._session())
print("google.genai" in loaded, [name for name in set(sys.modules) - loaded if "gemini" in name])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


async def test_preparing_leaves_the_event_loop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import, which takes half a second, runs in a thread."""
    threads = []
    monkeypatch.setattr(
        "llm_router.providers.gemini.prepare", lambda _backend: threads.append(threading.current_thread())
    )
    await GeminiProvider().prepare()
    assert len(threads) == 1
    assert threads != [threading.current_thread()]


def test_repr_shows_where_it_sends() -> None:
    """The repr names the server and the version."""
    assert (
        repr(GeminiProvider(base_url="http://x"))
        == "GeminiProvider(base_url='http://x', api_version='v1beta')"
    )


def test_unknown_backend() -> None:
    """An unknown HTTP backend is refused; the message names the known ones."""
    with pytest.raises(ConfigError, match="'aiohttp', 'httpx' or 'auto', not 'curl'"):
        GeminiProvider(http_backend="curl")  # type: ignore[arg-type]


def test_missing_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The aiohttp backend is refused if it is not installed; the message says how to install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"install llm-quota-router\[aiohttp\]"):
        GeminiProvider(http_backend="aiohttp")


async def test_auto_without_aiohttp(
    scripted: ScriptedServer, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without aiohttp, the automatic choice is httpx."""
    monkeypatch.setattr("llm_router.providers._gemini_session._has_aiohttp", lambda: False)
    provider = GeminiProvider(base_url=scripted.url)
    await provider.generate(deployment, HELLO)
    (session,) = provider._sessions.values()
    assert "httpx_async_client" in session._transport.http_options()
    await provider.aclose()


async def test_auto_with_aiohttp(scripted: ScriptedServer, deployment: Deployment) -> None:
    """With aiohttp, the automatic choice is aiohttp."""
    provider = GeminiProvider(base_url=scripted.url)
    await provider.generate(deployment, HELLO)
    (session,) = provider._sessions.values()
    assert "aiohttp_client" in session._transport.http_options()
    await provider.aclose()


@pytest.mark.parametrize(
    "url",
    ["localhost:8080", "htp://proxy", "http://", "https://:443", "http://proxy:port", "http://a b", "", "x"],
)
def test_a_malformed_base_url_is_refused_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument or in the environment; it is not shown, since it may contain a password."""
    with pytest.raises(ConfigError, match=r"^base_url must be a URL") as caught:
        GeminiProvider(base_url=url)
    assert url in ("", "x", "http://") or url not in str(caught.value)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
    if url:  # else it counts as unset
        with pytest.raises(ConfigError, match=r"^GOOGLE_GEMINI_BASE_URL must be a URL"):
            GeminiProvider()
    GeminiProvider(base_url="http://[::1]:8080/path")
