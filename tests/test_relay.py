"""An HTTP exchange through the pool, against the emulator, over both HTTP libraries."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Literal

import attrs
import pytest

from llm_router import (
    Deployment,
    Exchange,
    Head,
    InvalidRequestError,
    Key,
    Metric,
    Quota,
    Router,
    Secret,
    SendError,
    UnknownPathError,
)
from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.gemini_http.asking import read_asked
from llm_router.gemini_http.targets import parse_target
from llm_router.providers.gemini import GeminiProvider
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from llm_router import Response

KEYS = {"AIzaOfAlpha": "alpha", "AIzaOfBeta": "beta"}
JSON = (("content-type", "application/json"),)


def _deployment(project: str, model: str = "flash", workload: str = "medium", **limits: int) -> Deployment:
    secret = next(key for key, owner in KEYS.items() if owner == project)
    quotas = tuple(Quota(Metric(name), limit) for name, limit in limits.items())
    return Deployment(Key(project, Secret(secret)), model, workload=workload, quotas=quotas)


POOL = (
    _deployment("alpha", rpm=10),
    _deployment("beta", rpm=10),
    _deployment("alpha", "lite", "light"),
    _deployment("alpha", "text-embedding-9"),
)


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    """Provide an emulator that both projects may send ten requests a minute to."""
    async with GeminiEmulator(keys=KEYS, default_quota=QuotaSpec(rpm=10)) as emulator:
        yield emulator


@pytest.fixture(params=["aiohttp", pytest.param("httpx", marks=pytest.mark.slow)])
async def router(request: pytest.FixtureRequest, emulator: GeminiEmulator) -> AsyncIterator[Router]:
    """Provide a router over it; it closes its provider."""
    backend: Literal["aiohttp", "httpx"] = request.param
    provider = GeminiProvider(base_url=emulator.url, http_backend=backend)
    async with Router(POOL, provider=provider, base_backoff=0.001) as router:
        yield router
    await provider.aclose()


def _generate(
    model: str = "flash", text: str = "hello there", *, stream: bool = False, **fields: Any
) -> Exchange:
    method = "streamGenerateContent" if stream else "generateContent"
    body = {"contents": [{"role": "user", "parts": [{"text": text}]}], **fields}
    path = f"/v1beta/models/{model}:{method}"
    return Exchange(
        path=path, query="alt=sse" if stream else "", headers=JSON, body=json.dumps(body).encode()
    )


def _chat(model: str = "flash", **fields: Any) -> Exchange:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return Exchange(path="/v1/chat/completions", headers=JSON, body=json.dumps(body).encode())


async def _read(router: Router, exchange: Exchange, **options: Any) -> tuple[Head, bytes, Response]:
    async with router.relay(exchange, **options) as answer:
        body = b"".join([piece async for piece in answer])
        return answer.head, body, answer.response


async def _used(router: Router) -> dict[str, str]:
    """Return what is counted of the requests of each deployment that has a limit."""
    statuses = await router.get_all_key_statuses()
    return {status["key_id"]: status["rpm_usage"] for status in statuses if status["model"] == "flash"}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_is_passed_on_as_it_came(
    router: Router, emulator: GeminiEmulator, *, stream: bool
) -> None:
    """Status, content type and bytes are the server's; usage and finish reason are read on the way."""
    head, body, response = await _read(router, _generate(stream=stream))
    assert head.status == 200
    expected = "text/event-stream" if stream else "application/json; charset=UTF-8"
    assert dict(head.headers)["content-type"] == expected
    assert body.startswith(b"data: {" if stream else b'{"candidates"')
    assert response.success
    assert response.finish_reason == "STOP"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (2, 6)
    assert emulator.accepted == 1


async def test_urgency_and_tenant_are_options(router: Router) -> None:
    """As for a send; one that cannot be meant is refused before anything is sent."""
    _, _, response = await _read(router, _generate(), urgency="batch", tenant="acme")
    assert response.success
    with pytest.raises(InvalidRequestError, match="urgency must be 'interactive' or 'batch'"):
        await _read(router, _generate(), urgency="soon")
    with pytest.raises(InvalidRequestError, match="tenant"):
        await _read(router, _generate(), tenant=7)
    with pytest.raises(TypeError, match=r"^relay\(\) has no option 'config': use one of workload, "):
        await _read(router, _generate(), config={})


@pytest.mark.parametrize("model", [["flash"], 5], ids=str)
async def test_a_model_that_is_none(router: Router, model: Any) -> None:
    """As for a send."""
    with pytest.raises(InvalidRequestError) as told:
        await router.send("x", model_preference=model)
    with pytest.raises(type(told.value)) as caught:
        await _read(router, _generate(), model_preference=model)
    assert str(caught.value) == str(told.value)


async def test_a_workload_stands_for_a_model(router: Router) -> None:
    """Whatever serves the workload answers, and only the model's name is changed, in path or body."""
    _, body, response = await _read(router, _generate("workload:light"))
    assert response.model == "lite"
    assert b"[lite] echo: hello there" in body
    _, body, response = await _read(router, _chat("workload:light", user="workload:light"))
    assert b"[lite] echo: hi" in body


async def test_a_named_model_is_kept(router: Router, emulator: GeminiEmulator) -> None:
    """Where its keys have no room, the answer is a 429 and no other model's, unless that is allowed."""
    for _ in range(20):
        await _read(router, _generate())
    head, body, response = await _read(router, _generate())
    assert head.status == 429
    assert response.error is not None
    stated = next(each for each in json.loads(body)["error"]["details"] if "retryDelay" in each)
    assert 0 < float(stated["retryDelay"].removesuffix("s")) <= float(dict(head.headers)["retry-after"]) <= 61
    assert (emulator.accepted, emulator.refused) == (20, 0)
    _, _, response = await _read(router, _generate(), fallback="any")
    assert response.model == "lite"


async def test_what_only_one_model_understands_never_changes_model(router: Router) -> None:
    """A thought signature in the history keeps the model, whatever the fallback."""
    part = {"functionCall": {"name": "f"}, "thoughtSignature": "c2ln"}
    for _ in range(20):
        await _read(router, _generate())
    signed = _generate(contents=[{"role": "model", "parts": [part]}])
    head, _, _ = await _read(router, signed, fallback="any")
    assert head.status == 429


async def test_counting_takes_no_quota(router: Router, emulator: GeminiEmulator) -> None:
    """Tokens are counted and models listed also where nothing has room for a prompt."""
    for _ in range(20):
        await _read(router, _generate())
    path, body = "/v1beta/models/flash:countTokens", _generate().body
    head, answer, _ = await _read(router, Exchange(path=path, body=body))
    assert (head.status, "totalTokens" in json.loads(answer)) == (200, True)
    head, answer, _ = await _read(router, Exchange(verb="GET", path="/v1beta/models"))
    assert (head.status, "models" in json.loads(answer)) == (200, True)
    assert await _used(router) == {"alpha": "10/10", "beta": "10/10"}
    assert emulator.refused == 0


async def test_embeddings_reach_embedding_models_only(router: Router) -> None:
    """A model that cannot embed is refused before it costs anything."""
    body = b'{"content":{"parts":[{"text":"a b c"}]}}'
    path = "/v1beta/models/text-embedding-9:embedContent"
    head, answer, _ = await _read(router, Exchange(path=path, body=body))
    assert (head.status, "embedding" in json.loads(answer)) == (200, True)
    with pytest.raises(InvalidRequestError, match="cannot do embedContent"):
        await _read(router, Exchange(path="/v1beta/models/flash:embedContent", body=body))
    with pytest.raises(InvalidRequestError, match="name the model"):
        await _read(router, Exchange(path="/v1beta/models/workload:light:embedContent", body=body))


FAULTS = {
    "a refusal": Fault.status(429),
    "a bare refusal": Fault.bare_429(),
    "an overload": Fault.status(503),
    "a broken answer": Fault.cut_json(),
    "no answer": Fault.drop(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_what_fails_is_tried_elsewhere(router: Router, emulator: GeminiEmulator, fault: Fault) -> None:
    """Nothing of a failed attempt is seen by the client, and both attempts are known."""
    emulator.inject(fault, key="AIzaOfAlpha")
    emulator.inject(fault, key="AIzaOfAlpha")
    seen = []
    for _ in range(2):  # the first goes to either project
        head, body, response = await _read(router, _generate())
        assert (head.status, response.key_id) == (200, "beta")
        json.loads(body)
        seen.append(response.attempts)
    assert max(seen) == 2


async def test_an_error_that_begins_a_stream_is_tried_elsewhere(
    router: Router, emulator: GeminiEmulator
) -> None:
    """An error object in place of the first piece has not been passed on."""
    for key in KEYS:
        emulator.inject(Fault.stream_error(503, after=0), key=key, times=1)
    head, body, response = await _read(router, _generate(stream=True))
    assert (head.status, response.success, response.attempts) == (200, True, 3)
    assert b"error" not in body


@pytest.mark.parametrize("fault", [Fault.stream_cut(after=2), Fault.stream_drop(after=2)])
async def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one(
    router: Router, emulator: GeminiEmulator, fault: Fault
) -> None:
    """Reading raises after the pieces that came, also where the connection was closed cleanly."""
    emulator.inject(fault)
    pieces: list[bytes] = []
    with pytest.raises(SendError):
        async with router.relay(_generate(stream=True, text="one two three four")) as answer:
            pieces.extend([piece async for piece in answer])
    assert answer.head.status == 200


async def test_what_the_request_is_to_blame_for_is_the_providers_own_answer(
    router: Router, emulator: GeminiEmulator
) -> None:
    """A 400 comes with its own body, at the first attempt."""
    body = {"error": {"code": 400, "message": 'Unknown name "x"', "status": "INVALID_ARGUMENT"}}
    emulator.inject(Fault.status(400, body=body))
    head, answer, response = await _read(router, _generate())
    assert (head.status, json.loads(answer), response.attempts) == (400, body, 1)


@pytest.mark.parametrize(
    "exchange",
    [
        Exchange(verb="GET", path="/v1beta/tunedModels/gone"),
        Exchange(verb="GET", path="/v1beta/batches/gone"),
        Exchange(verb="GET", path="/v1beta/models/flash/operations/gone"),
        Exchange(path="/v1beta/interactions", headers=JSON, body=b'{"agent": "gone", "input": "hi"}'),
    ],
    ids=lambda exchange: exchange.path,
)
async def test_what_is_not_there_blames_no_model(
    router: Router, emulator: GeminiEmulator, exchange: Exchange
) -> None:
    """A resource or an agent that does not exist takes out nothing, is asked for once, and is a 404."""
    emulator.inject(Fault.status(404), methods=None)
    head, body, response = await _read(router, exchange)
    assert (head.status, b"NOT_FOUND" in body, response.attempts) == (404, True, 1)
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/flash:batchGenerateContent",
        "/v1beta/models/flash:countTokens",
        "/v1/models/flash:generateContent",
        "/v1/models/flash:streamGenerateContent",
        "/v1beta/interactions",
    ],
)
async def test_what_not_every_model_has_blames_no_model(
    router: Router, emulator: GeminiEmulator, path: str
) -> None:
    """A 404 for it is tried on the other key once, and passed on; prompts still go to both."""
    emulator.inject(Fault.status(404), methods=None)
    exchange = attrs.evolve(_generate(model="flash"), path=path)
    if path.endswith("interactions"):
        exchange = attrs.evolve(exchange, body=b'{"model": "flash", "input": "hi"}')
    for attempts in (2, 1):
        head, body, response = await _read(router, exchange)
        assert (head.status, b"NOT_FOUND" in body, response.attempts) == (404, True, attempts)
    emulator.clear_faults()
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}
    heads = [(await _read(router, _generate()))[0] for _ in range(4)]
    assert [head.status for head in heads] == [200] * 4


async def test_what_one_key_lacks_goes_to_the_other_at_once(router: Router, emulator: GeminiEmulator) -> None:
    """A version of the API that one project's model does not have is asked of that project once."""
    exchange = attrs.evolve(_generate(), path="/v1/models/flash:generateContent")
    rule = emulator.inject(Fault.status(404), key="AIzaOfAlpha", methods=None)
    found = [await _read(router, exchange) for _ in range(4)]
    assert [head.status for head, _, _ in found] == [200] * 4
    assert {response.key_id for _, _, response in found} == {"beta"}
    assert rule.taken == 1
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}


@pytest.mark.parametrize("method", ["batchGenerateContent", "countTokens"])
async def test_a_quota_of_another_method_leaves_prompts_alone(
    router: Router, emulator: GeminiEmulator, method: str
) -> None:
    """A 429 for what has quotas of its own cools no model down."""
    emulator.inject(Fault.status(429), methods=None, times=2)
    head, _, _ = await _read(router, attrs.evolve(_generate(), path=f"/v1beta/models/flash:{method}"))
    assert head.status in {404, 429}
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}


_BESIDE = [
    Exchange(path="/v1beta/models/flash:countTokens", headers=JSON, body=b'{"contents": [{"parts": []}]}'),
    Exchange(path="/v1beta/cachedContents", headers=JSON, body=b'{"model": "models/flash", "contents": []}'),
    Exchange(path="/v1beta/models/flash:batchGenerateContent", headers=JSON, body=b"{}"),
    Exchange(verb="GET", path="/v1beta/models/flash"),
]


@pytest.mark.parametrize("exchange", _BESIDE, ids=lambda exchange: exchange.path)
async def test_a_model_that_lacks_a_method_still_answers_prompts(
    router: Router, emulator: GeminiEmulator, exchange: Exchange
) -> None:
    """That a model cannot be cached, counted or batched is a 404 for whoever asked, and for nobody else."""
    emulator.inject(Fault.status(404), methods=None)
    head, body, _ = await _read(router, exchange)
    assert (head.status, b"NOT_FOUND" in body) == (404, True)
    emulator.clear_faults()
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}
    head, _, response = await _read(router, _generate())
    assert (head.status, response.attempts) == (200, 1)


@pytest.mark.parametrize("exchange", _BESIDE[:2], ids=lambda exchange: exchange.path)
async def test_a_quota_of_caches_or_counts_is_none_of_prompts(
    router: Router, emulator: GeminiEmulator, exchange: Exchange
) -> None:
    """The free tier refuses to keep caches of a model: it answers prompts as before."""
    message = "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model flash: limit=0"
    body = {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}}
    emulator.inject(Fault.status(429, body=body), methods=None)
    head, _, _ = await _read(router, exchange)
    assert head.status == 429
    emulator.clear_faults()
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}
    head, _, response = await _read(router, _generate())
    assert (head.status, response.attempts) == (200, 1)


async def test_a_list_that_is_refused_leaves_the_models_alone(
    router: Router, emulator: GeminiEmulator
) -> None:
    """Another key answers it; prompts still go to the one that had no quota for lists."""
    rule = emulator.inject(Fault.status(429), times=1, methods={"files.list"})
    head, _, response = await _read(router, Exchange(verb="GET", path="/v1beta/files"))
    assert (head.status, response.attempts, rule.taken) == (200, 2, 1)
    assert {each["cooldown_until"] for each in await router.get_all_key_statuses()} == {None}


async def test_openai_clients_get_openai_errors(router: Router, emulator: GeminiEmulator) -> None:
    """A spent quota is the error object and the status that they know."""
    for _ in range(20):
        await _read(router, _chat())
    head, body, _ = await _read(router, _chat())
    error = json.loads(body)["error"]
    assert (head.status, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert emulator.refused == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"a":1}x', b'{"messages":[]}', b"\xff", b"[" * 5000])
async def test_a_body_that_is_no_request_is_refused_before_it_costs_anything(
    router: Router, emulator: GeminiEmulator, body: bytes
) -> None:
    """Nothing is sent."""
    with pytest.raises(InvalidRequestError, match="the body"):
        await _read(router, Exchange(path="/v1/chat/completions", body=body))
    assert emulator.requests == 0


@pytest.mark.parametrize("path", ["/", "/v1beta/models/a%2fb:generateContent", "/v1beta/../x", "/v9/models"])
async def test_unknown_paths_are_refused(router: Router, emulator: GeminiEmulator, path: str) -> None:
    """Only what the API has is forwarded."""
    with pytest.raises(UnknownPathError):
        await _read(router, Exchange(path=path, body=b"{}"))
    assert emulator.requests == 0


async def test_credentials_of_the_client_are_not_sent_on(router: Router, emulator: GeminiEmulator) -> None:
    """The server sees one credential, in whatever place the client had put its own."""
    headers = (*JSON, ("authorization", "Bearer x"), ("x-goog-api-key", "x"), ("openai-organization", "x"))
    for exchange in (_generate(), _chat()):
        sent = Exchange(path=exchange.path, query="key=x", headers=headers, body=exchange.body)
        head, _, _ = await _read(router, sent)
        assert head.status == 200
    assert emulator.accepted == 2


async def test_leaving_early_settles(
    router: Router, emulator: GeminiEmulator, until_holding: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """A client that goes away in the middle leaves no reservation, whether it leaves or is cancelled."""
    for _ in range(4):
        async with router.relay(_generate(stream=True, text="one two three four")) as answer:
            await anext(answer)
    emulator.inject(Fault.hang())
    reading = asyncio.ensure_future(_read(router, _generate()))
    await until_holding(emulator)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    used = await _used(router)
    assert sum(int(each.partition("/")[0]) for each in used.values()) == 5
    statuses = await router.get_all_key_statuses()
    assert {status["key_id"] for status in statuses} == {"alpha", "beta"}


async def test_a_router_without_such_a_provider_says_so() -> None:
    """An adapter of one's own that relays nothing is told at once."""
    async with Router(POOL, provider=FakeProvider()) as router:
        with pytest.raises(InvalidRequestError, match="no provider of this router relays"):
            router.relay(_generate())


async def _upload(router: Router, data: bytes) -> tuple[str, str]:
    """Upload a file as the SDKs do; return its name and the key that it was uploaded with."""
    start = Exchange(
        path="/upload/v1beta/files",
        headers=(
            *JSON,
            ("x-goog-upload-protocol", "resumable"),
            ("x-goog-upload-command", "start"),
            ("x-goog-upload-header-content-type", "text/plain"),
            ("x-goog-upload-header-content-length", str(len(data))),
        ),
        body=b'{"file": {"displayName": "notes"}}',
    )
    head, _, first = await _read(router, start)
    path, _, query = dict(head.headers)["x-goog-upload-url"].partition("?")
    assert path == "/upload/v1beta/files"
    headers = (("x-goog-upload-command", "upload, finalize"), ("x-goog-upload-offset", "0"))
    head, body, last = await _read(router, Exchange(path=path, query=query, headers=headers, body=data))
    assert first.key_id == last.key_id is not None
    return json.loads(body)["file"]["name"], last.key_id


async def _upload_for_each(router: Router) -> list[tuple[str, str]]:
    """Upload a file for each project; which one is next is not said."""
    files: dict[str, str] = {}
    while len(files) < len(KEYS):
        name, key = await _upload(router, b"some text")
        files[key] = name
    return [(name, key) for key, name in files.items()]


async def test_a_file_stays_with_its_project(router: Router, emulator: GeminiEmulator) -> None:
    """Whatever names it goes to the project that it was uploaded for, and waits for its quota."""
    files = await _upload_for_each(router)
    for name, key in files:
        for _ in range(2):
            head, _, response = await _read(router, Exchange(verb="GET", path=f"/v1beta/{name}"))
            assert (head.status, response.key_id) == (200, key)
        uri = f"https://generativelanguage.googleapis.com/v1beta/{name}"
        asked = _generate(contents=[{"parts": [{"fileData": {"fileUri": uri, "mimeType": "text/plain"}}]}])
        for _ in range(2):
            head, _, response = await _read(router, asked, fallback="any")
            assert (head.status, response.key_id, response.model) == (200, key, "flash")
    name, key = files[0]
    head, _, _ = await _read(router, Exchange(verb="DELETE", path=f"/v1beta/{name}"))
    assert head.status == 200
    assert await router._sender.resources.projects([name]) == frozenset()


def _naming(name: str, form: str) -> bytes:
    """Return a body that names a file or a cache in some way."""
    uri = f"https://generativelanguage.googleapis.com/v1beta/{name}"
    prompt = {"contents": [{"parts": [{"text": "hi"}]}]}
    part = {"fileData": {"mimeType": "text/plain", "fileUri": uri}}
    bodies: dict[str, Any] = {
        "escaped": {"contents": [{"parts": [part]}]},
        "unicode": {"contents": [{"parts": [part]}]},
        "two": {"cachedContent": None, "cached_content": name, **prompt},
        "inner": {"generateContentRequest": {"model": "models/flash", "cachedContent": name, **prompt}},
    }
    slash = {"escaped": "\\/", "unicode": "\\u002f"}.get(form, "/")  # the first is how PHP writes it
    return json.dumps(bodies[form]).replace("/", slash).encode()


@pytest.mark.parametrize("form", ["escaped", "unicode"])
async def test_a_file_is_found_however_it_is_written(router: Router, form: str) -> None:
    """JSON may escape any character; the request stays with the project of the file."""
    for name, key in await _upload_for_each(router):
        asked = attrs.evolve(_generate(), body=_naming(name, form))
        for _ in range(2):
            head, _, response = await _read(router, asked)
            assert (head.status, response.key_id) == (200, key)


@pytest.mark.parametrize("form", ["two", "inner"])
async def test_a_cache_is_found_wherever_it_is_named(router: Router, form: str) -> None:
    """In either spelling of its field, and inside the request whose tokens are counted."""
    made = Exchange(
        path="/v1beta/cachedContents",
        headers=JSON,
        body=json.dumps({"model": "flash", "contents": [{"parts": [{"text": "long " * 50}]}]}).encode(),
    )
    _, body, response = await _read(router, made)
    method = "countTokens" if form == "inner" else "generateContent"
    path = f"/v1beta/models/flash:{method}"
    asked = Exchange(path=path, headers=JSON, body=_naming(json.loads(body)["name"], form))
    for _ in range(4):
        _, _, found = await _read(router, asked)
        assert found.key_id == response.key_id


def test_another_address_is_no_file_of_the_api() -> None:
    """An address of the web may have such a path, too: what it names belongs to nobody."""
    target = parse_target("POST", "/v1beta/models/flash:generateContent")
    assert target is not None
    for uri, names in (
        ("https://example.com/files/report.pdf", ()),
        ("gs://bucket/files/report.pdf", ()),
        ("files/abc", ("files/abc",)),
        ("https://generativelanguage.googleapis.com/v1beta/files/abc", ("files/abc",)),
        ("https://generativelanguage.googleapis.com/v1beta/files%2Fabc", ("files/abc",)),
        ("http://127.0.0.1:80/v1/files/abc", ("files/abc",)),
    ):
        body = json.dumps({"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]}).encode()
        assert read_asked(target, body).resources == names, uri


async def test_a_list_goes_on_where_it_began(router: Router) -> None:
    """The next page is asked of the project that gave its token: another one has other things in it."""
    files = await _upload_for_each(router)
    for _ in range(len(KEYS)):
        for name, _ in files:
            await _upload(router, name.encode())
    for _ in range(4):
        query, keys = "pageSize=1", set()
        while query:
            _, body, response = await _read(router, Exchange(verb="GET", path="/v1beta/files", query=query))
            found = json.loads(body)
            assert len(found["files"]) == 1
            keys.add(response.key_id)
            token = found.get("nextPageToken")
            query = token and f"pageSize=1&pageToken={token}"
        assert len(keys) == 1


async def test_a_pinned_request_waits_for_its_project(router: Router) -> None:
    """Room elsewhere is of no use to it, and it says when its own returns."""
    name, key = await _upload(router, b"some text")
    uri = f"https://generativelanguage.googleapis.com/v1beta/{name}"
    asked = _generate(contents=[{"parts": [{"fileData": {"fileUri": uri, "mimeType": "text/plain"}}]}])
    for _ in range(10):
        _, _, response = await _read(router, asked)
        assert response.key_id == key
    head, _, response = await _read(router, asked)
    assert (head.status, response.attempts) == (429, 0)
    assert 0 < float(dict(head.headers)["retry-after"]) <= 61
    waiting = asyncio.create_task(_read(router, asked, max_wait=120.0))
    while not router._sender.selector.waiting:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)
    head, _, response = await _read(router, _generate(), max_wait=120.0)  # does not stand behind it
    assert (head.status, response.waited < 30.0) == (200, True)
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_what_belongs_to_two_projects_cannot_meet(router: Router, emulator: GeminiEmulator) -> None:
    """No key may use both, which is said before anything is sent."""
    files = await _upload_for_each(router)
    parts = [{"fileData": {"fileUri": f"https://host/v1beta/{name}"}} for name, _ in files]
    before = emulator.requests
    with pytest.raises(InvalidRequestError, match=r"files/.* belongs to project"):
        await _read(router, _generate(contents=[{"parts": parts}]))
    assert emulator.requests == before


@pytest.mark.parametrize("stream", [False, True])
async def test_an_interaction_is_continued_where_it_began(router: Router, *, stream: bool) -> None:
    """Its id is read from the answer, also from that of a stream."""
    path = "/v1beta/interactions"
    keys = []
    previous: dict[str, str] = {}
    for _ in range(4):
        asked = {"model": "flash", "input": "hi", "stream": stream, **previous}
        head, body, response = await _read(router, Exchange(path=path, body=json.dumps(asked).encode()))
        assert head.status == 200, body
        found = re.search(rb'"id"\s*:\s*"([^"]+)"', body)
        assert found is not None
        previous = {"previous_interaction_id": found[1].decode()}
        keys.append(response.key_id)
    assert len(set(keys)) == 1


async def test_a_cache_is_used_where_it_was_made(router: Router) -> None:
    """It is of one model and one project."""
    body = {
        "model": "models/flash",
        "contents": [{"role": "user", "parts": [{"text": "long " * 50}]}],
        "ttl": "60s",
    }
    made = Exchange(path="/v1beta/cachedContents", headers=JSON, body=json.dumps(body).encode())
    head, answer, first = await _read(router, made)
    assert head.status == 200, answer
    name = json.loads(answer)["name"]
    for _ in range(3):
        head, answer, response = await _read(router, _generate(cachedContent=name), fallback="any")
        assert (head.status, response.key_id, response.model) == (200, first.key_id, "flash"), answer
