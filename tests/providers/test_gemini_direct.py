"""Plain requests without the SDK's models: the same bytes out, and the same answer read, as by the SDK."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from google.genai import types

from llm_router import Deployment, Reply
from llm_router.domain.kinds import FailureKind
from llm_router.domain.request import Request
from llm_router.domain.response import Deferred, Response
from llm_router.errors import ProviderError
from llm_router.providers import _gemini_direct
from llm_router.providers.gemini import GeminiProvider

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer

HISTORY = [
    {"role": "user", "parts": [{"text": "Who?"}]},
    {"role": "model", "parts": [{"text": "I.", "thought_signature": b"\xff\xfe\x00"}, {"text": ""}]},
    {"role": "user", "parts": [{"text": "Why?"}]},
]
SETTINGS = {
    "seed": -7,
    "top_k": 3,
    "top_p": 1,
    "temperature": 0.25,
    "candidate_count": 1,
    "stop_sequences": ["a", ""],
    "presence_penalty": 0.1,
    "frequency_penalty": 1e-9,
    "response_mime_type": "text/plain",
    "system_instruction": "Be brief.",
    "max_output_tokens": 9,
}
PLAIN: dict[str, Request] = {
    "a word": Request(contents="Hello?"),
    "any text": Request(contents='"\\\n\x00\x7f é \u2028 😀 \ud800'),
    "several texts": Request(contents=["a", "b"], temperature=1),
    "a history": Request(contents=HISTORY),
    "named settings": Request(
        contents="x", system_instruction="Be brief.", max_output_tokens=5, temperature=0.1
    ),
    "a config": Request(contents="x", config=SETTINGS),
    "a config and names": Request(contents="x", config=SETTINGS, temperature=2, system_instruction="No."),
    "an empty instruction": Request(contents="x", system_instruction="", config={}),
    "thresholds": Request(contents="x", safety_settings={"harassment": "off", "CIVIC_INTEGRITY": "OFF"}),
    "no thresholds": Request(contents="x", safety_settings={}),
}
RICH: dict[str, Request] = {
    "an object": Request(contents=types.Part(text="x")),
    "a mixed list": Request(contents=["x", types.Part(text="y")]),
    "an image": Request(
        contents=[{"role": "user", "parts": [{"inline_data": {"data": b"x", "mime_type": "image/png"}}]}]
    ),
    "no role": Request(contents=[{"parts": [{"text": "x"}]}]),
    "a config of the SDK": Request(contents="x", config=types.GenerateContentConfig(top_k=3)),
    "camel case": Request(contents="x", config={"topK": 3}),
    "a tool": Request(contents="x", config={"tools": [{"google_search": {}}]}),
    "none": Request(contents="x", config={"top_k": None}),
    "a string for a number": Request(contents="x", config={"top_k": "3"}),
    "content as an instruction": Request(contents="x", system_instruction={"parts": [{"text": "x"}]}),
}


@pytest.fixture(params=["httpx", pytest.param("aiohttp", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def both(scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider]) -> list[GeminiProvider]:
    """Return a provider that sends plain text itself, and one that has the SDK do everything."""
    return [open_provider(scripted.url, direct=direct) for direct in (True, False)]


@pytest.fixture
def sent_directly(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the bodies that are sent without the SDK."""
    bodies: list[bytes] = []
    post = _gemini_direct._post

    async def noted(*args: Any) -> Any:
        bodies.append(args[-1])
        return await post(*args)

    monkeypatch.setattr(_gemini_direct, "_post", noted)
    return bodies


def headers(head: str) -> list[str]:
    """Return the request line and the headers, in any order and case, without the transport's own."""
    lines = (line.strip().lower() for line in head.strip().splitlines())
    return sorted(line for line in lines if not line.startswith("connection:"))


async def read(provider: GeminiProvider, deployment: Deployment, request: Request) -> list[Reply]:
    async with aclosing(provider.stream(deployment, request)) as replies:
        return [reply async for reply in replies]


@pytest.mark.parametrize("name", PLAIN)
async def test_the_same_bytes(
    scripted: ScriptedServer,
    both: list[GeminiProvider],
    deployment: Deployment,
    sent_directly: list[bytes],
    name: str,
) -> None:
    """Request line, headers and body are those of the SDK, whole and streamed."""
    request = PLAIN[name]
    for provider in both:
        provider.validate(request)
        await provider.generate(deployment, request)
        await read(provider, deployment, request)
    whole, streamed, whole_by_sdk, streamed_by_sdk = scripted.requests
    assert (whole[1], streamed[1]) == (whole_by_sdk[1], streamed_by_sdk[1])
    assert headers(whole[0]) == headers(whole_by_sdk[0])
    assert headers(streamed[0]) == headers(streamed_by_sdk[0])
    assert len(sent_directly) == 2


@pytest.mark.parametrize("name", RICH)
async def test_all_else_goes_through_the_sdk(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    sent_directly: list[bytes],
    name: str,
) -> None:
    """What is more than text and numbers, or not in the plainest form, is the SDK's business."""
    provider = open_provider(scripted.url)
    provider.validate(RICH[name])
    assert (await provider.generate(deployment, RICH[name])).text == "Hello."
    assert len(scripted.requests) == 1
    assert sent_directly == []


def part(**fields: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": [fields]}, "finishReason": "STOP"}]}


USAGE = {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 1, "serviceTier": "standard"}
ANSWERS: dict[str, Any] = {
    "a text": {**part(text="Hello."), "usageMetadata": USAGE, "modelVersion": "m-001", "responseId": "r"},
    "a signed text": part(text="Hello.", thoughtSignature="_-8="),
    "a wrong signature": part(text="Hello.", thoughtSignature="?"),
    "a thought": part(text="Hm.", thought=True, thoughtSignature="c2ln"),
    "no thought": part(text="Hello.", thought=False),
    "an empty text": part(text=""),
    "an unknown field": part(text="Hello.", newField={"a": 1}),
    "a call": part(functionCall={"name": "f", "args": {"a": 1}}, thoughtSignature="c2ln"),
    "an image": part(inlineData={"mimeType": "image/png", "data": "aGk="}),
    "an empty part": part(),
    "a number as text": part(text=5),
    "no parts": {"candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}]},
    "no content": {"candidates": [{"finishReason": "STOP", "index": 0}]},
    "no end": {"candidates": [{"content": {"parts": [{"text": "Hello."}]}}]},
    "blocked": {"candidates": [{"finishReason": "SAFETY", "safetyRatings": []}]},
    "an unknown end": {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "NEW_REASON"}]},
    "a malformed call": {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]},
    "two candidates": {"candidates": [part(text="a")["candidates"][0], part(text="b")["candidates"][0]]},
    "no candidate": {"candidates": [], "usageMetadata": USAGE},
    "usage alone": {"usageMetadata": USAGE},
    "a blocked prompt": {"promptFeedback": {"blockReason": "SAFETY"}},
    "feedback": {"promptFeedback": {}},
    "grounded": {
        "candidates": [{**part(text="a")["candidates"][0], "groundingMetadata": {"webSearchQueries": ["q"]}}]
    },
    "an error": {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}},
    "nothing": {},
    "a list": [1],
    "null": None,
    "counts as text": {**part(text="Hello."), "usageMetadata": {"promptTokenCount": "3"}},
}


def mutated(value: Any, draw: random.Random) -> Any:
    """Return JSON with one value in it replaced by another, wherever it is."""
    if not value or not isinstance(value, dict | list) or draw.random() < 0.15:
        return draw.choice([None, True, 0, -1, 2.5, "", "STOP", "x", [], {}, [{}], {"text": "t"}])
    place = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    changed[place] = mutated(value[place], draw)
    return changed


async def outcome(work: Any) -> Any:
    """Return replies with the SDK's objects in them as dictionaries, or what the call failed with."""
    try:
        found = await work
    except ProviderError as error:
        # An answer that cannot be read is named after the error that it met, which differs.
        text = str(error).partition("not an answer: ")
        return error.kind, error.code, error.charged, error.scope, text[:2]
    replies = found if isinstance(found, list) else [found]
    return [(reply, repr(reply.content), raw(reply)) for reply in replies]


def raw(reply: Reply) -> Any:
    if reply.raw is None:
        return None
    assert isinstance(reply.raw, types.GenerateContentResponse)
    assert reply.raw is reply.raw
    fields = reply.raw.model_dump()
    names = {name.lower(): value for name, value in fields.pop("sdk_http_response")["headers"].items()}
    return fields, names


FIRST = {"candidates": [{"content": {"role": "model", "parts": [{"text": "So: "}]}}]}


@pytest.fixture
def compare(
    scripted: ScriptedServer,
    both: list[GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> Callable[[Any], Awaitable[None]]:
    """Compare what is read of an answer directly and by the SDK, whole and as the second of two pieces."""

    async def compared(value: Any) -> None:
        body, first = json.dumps(value).encode(), json.dumps(FIRST).encode()
        for request in (Request(contents="x"), Request(contents="x", max_output_tokens=9)):
            found = []
            for provider in both:
                scripted.reply = make_http(200, body)
                whole = await outcome(provider.generate(deployment, request))
                scripted.reply = make_http(200, b"data: " + first + b"\r\n\r\ndata: " + body + b"\r\n\r\n")
                found.append((whole, await outcome(read(provider, deployment, request))))
            for ours, theirs in zip(*found, strict=True):
                # What the SDK cannot read is an answer all the same, if it is in a field of no interest.
                is_beyond_it = isinstance(theirs, tuple) and isinstance(ours, list) and ours[-1][-1] is None
                assert ours == theirs or is_beyond_it, value

    return compared


@pytest.mark.filterwarnings("ignore:.* is not a valid:UserWarning")  # of a reason that the SDK does not know
async def test_the_same_answer(compare: Callable[[Any], Awaitable[None]]) -> None:
    """Reply and raw object are those that the SDK's way gives."""
    for answer in ANSWERS.values():
        await compare(answer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* is not a valid:UserWarning")
async def test_the_same_of_any_answer(compare: Callable[[Any], Awaitable[None]]) -> None:
    """Also where something in it has another type or is missing."""
    draw = random.Random(5)
    answers = [value for name, value in ANSWERS.items() if name != "an error"]
    for _ in range(150):
        await compare(mutated(draw.choice(answers), draw))


FAILURES: dict[str, bytes] = {
    "an error": b'data: {"error": {"code": 429, "message": "No", "status": "RESOURCE_EXHAUSTED"}}\n\n',
    "an error without a frame": b'{\n "error": {\n  "code": 503,\n  "message": "in lines"\n }\n}\n',
    "half an error": b'{"error": {"code": 503,\n',
    "not JSON": b"data: {\n\n",
    "a comment and an end": b': hm\n\nevent: x\ndata: {"candidates": [{"finishReason": "STOP"}]}\n\n'
    b"data: [DONE]\n\n",
    "two lines of data": b'data: {"candidates":\ndata: [{"finishReason": "STOP"}]}\n\n',
    "no last line": b'data: {"candidates": [{"finishReason": "STOP"}]}',
    "nothing": b"",
}


@pytest.mark.parametrize("name", FAILURES)
async def test_the_same_stream(
    scripted: ScriptedServer,
    both: list[GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    name: str,
) -> None:
    """Frames, comments, errors in place of a piece and broken ends are read as by the SDK."""
    scripted.reply = make_http(200, FAILURES[name])
    found = [await outcome(read(provider, deployment, Request(contents="x"))) for provider in both]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {}}\n\n',
        b'data: {"error": "no"}\n\n',
        b'data: {"error": {"code": "x"}}\n\n',
        b'{"error": {"code": 500, "message": "a } in it"\n}\n}\n',
    ],
)
async def test_an_error_that_not_every_sdk_sees(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    event: bytes,
) -> None:
    """Without a code, or without a frame and with a brace in its words, it is the server's all the same."""
    scripted.reply = make_http(200, event)
    with pytest.raises(ProviderError) as caught:
        await read(open_provider(scripted.url), deployment, Request(contents="x"))
    assert (caught.value.kind, caught.value.code) == (FailureKind.SERVER, 500)


async def test_an_sdk_that_cannot_make_its_response_of_json(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    sent_directly: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does everything itself, as it is told to by ``direct=False``."""
    monkeypatch.setattr("llm_router.providers.gemini.can_read", lambda: False)
    reply = await open_provider(scripted.url).generate(deployment, Request(contents="x"))
    assert isinstance(reply.source, types.GenerateContentResponse)
    assert sent_directly == []


async def test_the_object_of_the_sdk_is_made_when_it_is_asked_for(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """Once, and also by a copy that has been to another process."""
    reply = await open_provider(scripted.url).generate(deployment, Request(contents="x"))
    assert isinstance(reply.source, Deferred)
    response = Response(success=True, raw=reply.source)
    assert response.raw is response.raw is reply.raw
    assert response.raw.text == "Hello."
    assert pickle.loads(pickle.dumps(response)).raw.text == "Hello."
