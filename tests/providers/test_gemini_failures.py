"""How the Gemini adapter translates failures: every row of its table, over HTTP, on both backends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from llm_router import Deployment
from llm_router.domain.request import Request
from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.errors import ProviderError, QuotaViolation
from llm_router.providers.base import FailureKind
from llm_router.providers.gemini import GeminiProvider

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer


HELLO = Request(contents="Hello?")


async def fail(provider: GeminiProvider, deployment: Deployment, request: Request = HELLO) -> ProviderError:
    """Send a request that must fail, and return its error."""
    with pytest.raises(ProviderError) as caught:
        await provider.generate(deployment, request)
    return caught.value


def refusal(code: int, message: str, status: Any = None, *details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def reason(word: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": word, "domain": "googleapis.com"}


def quota_failure(*violations: Any) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": list(violations)}


def retry_info(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


ROWS = {
    "invalid key": (
        400,
        refusal(400, "API key not valid.", "INVALID_ARGUMENT", reason("API_KEY_INVALID")),
        FailureKind.KEY,
    ),
    "expired key without a reason": (
        400,
        refusal(400, "API key expired. Please renew the API key.", "INVALID_ARGUMENT"),
        FailureKind.KEY,
    ),
    "unauthenticated": (401, refusal(401, "No credentials.", "UNAUTHENTICATED"), FailureKind.KEY),
    "suspended": (
        403,
        refusal(403, "Consumer has been suspended.", "PERMISSION_DENIED", reason("CONSUMER_SUSPENDED")),
        FailureKind.KEY,
    ),
    "project denied": (
        403,
        refusal(403, "Your project has been denied access.", "PERMISSION_DENIED"),
        FailureKind.KEY,
    ),
    "another project's file": (
        403,
        refusal(
            403, "You do not have permission to access the File abc or it may not exist.", "PERMISSION_DENIED"
        ),
        FailureKind.REQUEST,
    ),
    "another project's cache": (
        403,
        refusal(403, "CachedContent not found (or permission denied)", "PERMISSION_DENIED"),
        FailureKind.REQUEST,
    ),
    "no such model": (
        404,
        refusal(404, "models/x is not found for API version v1beta", "NOT_FOUND"),
        FailureKind.MODEL,
    ),
    "no such file": (404, refusal(404, "File not found.", "NOT_FOUND"), FailureKind.REQUEST),
    "wrong argument": (400, refusal(400, "Too many tokens.", "INVALID_ARGUMENT"), FailureKind.REQUEST),
    "too large": (413, refusal(413, "Payload too large."), FailureKind.REQUEST),
    "request timeout": (408, refusal(408, "Timeout."), FailureKind.TIMEOUT),
    "internal": (500, refusal(500, "Internal error.", "INTERNAL"), FailureKind.SERVER),
    "bad gateway": (502, b"<html>Bad gateway</html>", FailureKind.SERVER),
    "overloaded": (503, refusal(503, "The model is overloaded.", "UNAVAILABLE"), FailureKind.SERVER),
    "deadline": (504, refusal(504, "Deadline expired.", "DEADLINE_EXCEEDED"), FailureKind.SERVER),
    "web page for 403": (403, b"\n<!DOCTYPE html><title>Blocked</title>", FailureKind.NETWORK),
    "web page for 404": (404, b"<html>Not here</html>", FailureKind.NETWORK),
    "web page for 413": (413, b"<html>Too large</html>", FailureKind.REQUEST),
    "no content": (204, b"", FailureKind.NETWORK),
    "empty body": (401, b"", FailureKind.KEY),
}


async def test_kind_of_each_status(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    assert_no_secret: Callable[..., None],
) -> None:
    """Each status has its kind, is charged unless a 429, is sent once, and shows no key."""
    provider, found, expected = open_provider(scripted.url), {}, {}
    for name, (code, body, kind) in ROWS.items():
        scripted.reply = make_http(code, body)
        scripted.requests.clear()
        error = await fail(provider, deployment)
        found[name] = error.kind, error.code, error.charged, error.violations, len(scripted.requests)
        expected[name] = kind, code, code != 429, (), 1
        assert_no_secret(error)
    assert found == expected


FAULTS = [
    (Fault.status(401), FailureKind.KEY),
    (Fault.status(403), FailureKind.KEY),
    (Fault.status(404), FailureKind.MODEL),
    (Fault.status(400), FailureKind.REQUEST),
    (Fault.status(429), FailureKind.QUOTA),
    (Fault.status(500), FailureKind.SERVER),
    (Fault.status(503), FailureKind.SERVER),
    (Fault.status(504), FailureKind.SERVER),
    (Fault.bare_429(), FailureKind.QUOTA),
    (Fault.list_429(), FailureKind.QUOTA),
    (Fault.cut_json(429), FailureKind.QUOTA),
    (Fault.cut_json(503), FailureKind.SERVER),
    (Fault.cut_json(200), FailureKind.NETWORK),
    (Fault.empty(), FailureKind.NETWORK),
    (Fault.drop(), FailureKind.NETWORK),
]


async def test_kind_of_each_fault(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
) -> None:
    """Each fault of the emulator has its kind, is charged unless a 429, is sent once, and shows no key."""
    provider = open_provider(emulator.url)
    for fault, kind in FAULTS:
        before, rule = emulator.requests, emulator.inject(fault, times=1)
        error = await fail(provider, deployment)
        assert (error.kind, error.charged) == (kind, kind is not FailureKind.QUOTA), fault
        assert rule.taken == emulator.requests - before == 1, fault
        assert_no_secret(error)


async def test_unknown_key(
    open_provider: Callable[..., GeminiProvider], make_deployment: Callable[..., Deployment]
) -> None:
    """A key that the server does not know is a failure of the key."""
    async with GeminiEmulator(keys={"another": "project-1"}) as emulator:
        error = await fail(open_provider(emulator.url), make_deployment())
    assert (error.kind, error.code, error.status) == (FailureKind.KEY, 400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("spec", "metric", "limit"),
    [
        (QuotaSpec(rpm=1), "rpm", 1),
        (QuotaSpec(rpd=1), "rpd", 1),
        (QuotaSpec(tpm=2), "tpm", 2),
    ],
    ids=str,
)
async def test_quota_of_the_emulator(
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    spec: QuotaSpec,
    metric: str,
    limit: int,
) -> None:
    """A spent quota is named, with its limit and the time to wait."""
    async with GeminiEmulator(default_quota=spec) as emulator:
        provider = open_provider(emulator.url)
        if metric != "tpm":
            await provider.generate(deployment, HELLO)
        error = await fail(provider, deployment, Request(contents="one two three four five six"))
    assert error.kind is FailureKind.QUOTA
    assert error.status == "RESOURCE_EXHAUSTED"
    assert error.violations == (QuotaViolation(metric, limit),)
    assert error.retry_delay is not None


async def test_429_with_two_violations_in_a_list(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """The details are found in a body that is a list of one; an unknown id has no metric."""
    details = (
        quota_failure(
            {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "50"},
            {"quotaId": "SomethingNew-FreeTier"},
        ),
        retry_info("0s"),
    )
    scripted.reply = make_http(429, [refusal(429, "Exceeded.", "RESOURCE_EXHAUSTED", *details)])
    error = await fail(open_provider(scripted.url), deployment)
    assert error.violations == (QuotaViolation("rpd", 50), QuotaViolation(None, None))
    assert error.retry_delay == 1.0


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
async def test_retry_after_header(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    value: str,
    seconds: float | None,
) -> None:
    """A Retry-After header in seconds counts if the body has no delay."""
    scripted.reply = make_http(503, refusal(503, "Overloaded."), [f"Retry-After: {value}"])
    assert (await fail(open_provider(scripted.url), deployment)).retry_delay == seconds


async def test_body_wins_over_retry_after_header(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """The delay in the body, which is more exact, takes precedence over the header."""
    body = refusal(429, "Please retry in 36.4s.")
    scripted.reply = make_http(429, body, ["Retry-After: 37"])
    assert (await fail(open_provider(scripted.url), deployment)).retry_delay == 36.4


@pytest.mark.parametrize(
    "body",
    [b"[]", b'"words"', b"{}", b'{"candidates": "x"}', b'{"candidates": [{}]}', b"3", b'{"candidates": []}'],
)
async def test_200_that_is_not_an_answer(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    body: bytes,
) -> None:
    """A 200 without candidates and without feedback is not an answer, whatever its type."""
    scripted.reply = make_http(200, body)
    error = await fail(open_provider(scripted.url), deployment)
    assert (error.kind, error.code, error.charged) == (FailureKind.NETWORK, 200, True)
    assert str(error).startswith("200: not an answer: ")


async def test_connection_refused(
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
) -> None:
    """A refused connection is a failure of the path, and not charged; no object is shown in the message."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = await fail(open_provider(f"http://127.0.0.1:{taken.getsockname()[1]}"), deployment)
    assert (error.kind, error.code, error.charged) == (FailureKind.NETWORK, None, False)
    assert "ssl" not in str(error)
    assert_no_secret(error)


async def test_no_such_host(
    open_provider: Callable[..., GeminiProvider], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that does not resolve is a failure of the path, and not charged."""

    async def getaddrinfo(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    error = await fail(open_provider("http://gemini.invalid"), deployment)
    assert (error.kind, error.charged) == (FailureKind.NETWORK, False)


async def test_tls_handshake_fails(
    open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A server without TLS is a failure of the path, and not charged."""

    async def answer_without_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer_without_tls, "127.0.0.1", 0)
    async with server:
        error = await fail(
            open_provider(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"), deployment
        )
    assert (error.kind, error.charged) == (FailureKind.NETWORK, False)


async def test_connection_takes_too_long(
    open_provider: Callable[..., GeminiProvider], deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is not made in time is a TIMEOUT, and not charged."""
    for module in ("_gemini_aiohttp", "_gemini_httpx"):
        monkeypatch.setattr(f"llm_router.providers.{module}.CONNECT_TIMEOUT", 0.05)
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        left.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        error = await fail(open_provider(url), deployment)
        await left.wait()
    assert (error.kind, error.code, error.charged) == (FailureKind.TIMEOUT, None, False)


async def test_connection_dropped_is_not_sent_again(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
) -> None:
    """A connection that is reset before the answer is charged, and not tried again."""
    scripted.reply = None
    error = await fail(open_provider(scripted.url), deployment)
    assert (error.kind, error.code, error.charged) == (FailureKind.NETWORK, None, True)
    assert (len(scripted.requests), scripted.connections) == (1, 1)
    assert_no_secret(error)


async def test_answer_breaks_off(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    answer: dict[str, Any],
) -> None:
    """A connection that is reset during the answer is charged, and not tried again."""
    scripted.reply, scripted.reset_after_reply = make_http(200, answer)[:-20], True
    error = await fail(open_provider(scripted.url), deployment)
    assert (error.kind, error.charged) == (FailureKind.NETWORK, True)
    assert len(scripted.requests) == 1


async def test_refusal_breaks_off(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """A refusal whose body breaks off is still recognised by its status."""
    scripted.reply = make_http(429, refusal(429, "Exceeded."))[:-20]
    scripted.reset_after_reply = True
    error = await fail(open_provider(scripted.url), deployment)
    assert (error.kind, error.code) == (FailureKind.QUOTA, 429)


async def test_timeout_of_the_callers_http_options(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A timeout set in the caller's config is a TIMEOUT, and charged."""
    emulator.inject(Fault.hang())
    request = Request(contents="Hello?", config={"http_options": {"timeout": 50}})
    error = await fail(open_provider(emulator.url), deployment, request)
    assert (error.kind, error.code, error.charged) == (FailureKind.TIMEOUT, None, True)
    assert emulator.requests == 1


async def test_wrong_request_is_not_sent(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A request that cannot be put into HTTP is a failure of the request, and not charged."""
    provider = open_provider(scripted.url)
    wrong_config = await fail(provider, deployment, Request(contents="x", config={"temperature": "hot"}))
    wrong_contents = await fail(provider, deployment, Request(contents=[5]))
    for error in (wrong_config, wrong_contents):
        assert (error.kind, error.code, error.charged) == (FailureKind.REQUEST, None, False)
    assert scripted.requests == []


async def test_key_in_the_providers_words_is_masked(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    secret: str,
    assert_no_secret: Callable[..., None],
) -> None:
    """A refusal that quotes the key is reported without it."""
    scripted.reply = make_http(403, refusal(403, f"Consumer 'api_key:{secret}' was suspended.", secret))
    del secret
    error = await fail(open_provider(scripted.url), deployment)
    assert str(error) == "403: Consumer 'api_key:***' was suspended."
    assert error.status is None
    assert_no_secret(error)


async def test_key_in_a_cut_body_is_masked(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    assert_no_secret: Callable[..., None],
    secret: str,
) -> None:
    """Masking comes before cutting, so that no part of the key survives at the end."""
    scripted.reply = make_http(403, refusal(403, "x" * 490 + secret))
    start = secret[:12]
    del secret
    error = await fail(open_provider(scripted.url), deployment)
    assert len(str(error)) <= 500
    assert_no_secret(error, start)


@pytest.mark.parametrize("form", ["escaped", "quoted", "cut"])
async def test_key_in_other_spellings_is_masked(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    assert_no_secret: Callable[..., None],
    secret: str,
    form: str,
) -> None:
    """The key is masked in JSON escapes, percent-encoded, and where the body breaks off inside it."""
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in secret)
    words = {"escaped": escaped, "quoted": quote(secret, safe=""), "cut": secret[:-3]}[form]
    end = "" if form == "cut" else '"}}'
    scripted.reply = make_http(403, f'{{"error": {{"message": "Key: {words}{end}'.encode())
    start = secret[:20]
    del secret, escaped, words
    error = await fail(open_provider(scripted.url), deployment)
    assert str(error) == "403: Key: ***"
    assert_no_secret(error, start)


async def test_key_that_is_empty(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty key is a failure of the key, and is not replaced by one from the environment."""
    monkeypatch.setenv("GOOGLE_API_KEY", "another-key")
    error = await fail(open_provider(scripted.url), make_deployment(""))
    assert (error.kind, error.charged) == (FailureKind.KEY, False)
    assert scripted.requests == []


async def test_long_message_is_cut(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """A long message from the provider is cut."""
    scripted.reply = make_http(500, refusal(500, "words " * 1000))
    message = str(await fail(open_provider(scripted.url), deployment))
    assert len(message) == 500
    assert message.endswith("…")


async def test_body_that_is_not_text(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """Bytes that are not UTF-8 do not hide the status."""
    scripted.reply = make_http(503, b"\xff\xfe\x00")
    error = await fail(open_provider(scripted.url), deployment)
    assert (error.kind, error.code) == (FailureKind.SERVER, 503)
