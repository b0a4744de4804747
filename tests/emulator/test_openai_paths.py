from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec

MODEL = "gemini-test"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Client:
    """An HTTP client on OpenAI's paths."""

    def __init__(self, emulator: GeminiEmulator, http: aiohttp.ClientSession) -> None:
        self._emulator = emulator
        self._http = http

    async def send(
        self, path: str, body: object = None, headers: dict[str, str] | None = None, query: str = ""
    ) -> tuple[int, Any]:
        status, text = await self.text(path, body, headers, query)
        return status, json.loads(text)

    async def text(
        self, path: str, body: object = None, headers: dict[str, str] | None = None, query: str = ""
    ) -> tuple[int, str]:
        sent = {"Authorization": "Bearer key"} if headers is None else headers
        url = f"{self._emulator.url}/v1beta/openai/{path}{query}"
        verb = "GET" if body is None else "POST"
        async with self._http.request(verb, url, json=body, headers=sent) as response:
            return response.status, await response.text()

    async def chat(self, prompt: str = "hello", **fields: object) -> tuple[int, Any]:
        messages = [{"role": "user", "content": prompt}]
        return await self.send("chat/completions", {"model": MODEL, "messages": messages, **fields})

    async def stream(self, prompt: str = "hello", **fields: object) -> list[Any]:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": MODEL, "messages": messages, "stream": True, **fields}
        status, text = await self.text("chat/completions", body)
        assert status == 200
        lines = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator(
        keys={"key": "p", "other": "q"},
        models=[MODEL, "small-embedding"],
        quotas={MODEL: QuotaSpec(rpm=3)},
        thought_tokens=2,
    ) as running:
        yield running


@pytest.fixture
def client(emulator: GeminiEmulator, http: aiohttp.ClientSession) -> Client:
    return Client(emulator, http)


async def test_a_chat_completion_uses_the_model_s_quota(client: Client, emulator: GeminiEmulator) -> None:
    """It is counted with what generateContent uses, and refused with a list of one error."""
    status, body = await client.chat("Tell me of llamas")
    assert status == 200
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "[gemini-test] echo: Tell me of llamas"}
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 15}
    await client.chat()
    await client.chat(max_tokens=1)
    status, errors = await client.chat()
    assert status == 429
    [error] = errors
    assert error["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert emulator.by_bucket["p", MODEL].accepted == 3


async def test_a_stream_has_running_totals_and_an_end(client: Client) -> None:
    """Each chunk has the usage so far if the request asks for it; after the last comes a mark."""
    *chunks, end = await client.stream("x" * 40, stream_options={"include_usage": True})
    assert end == "[DONE]"
    totals = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert totals == sorted(set(totals))
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks).endswith("x" * 40)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    *plain, _ = await client.stream()
    assert not any("usage" in chunk for chunk in plain)


async def test_tool_calls_come_whole_and_signed(client: Client) -> None:
    """A call has no index and a thought signature, which must come back at the same call."""
    (first, last, _) = await client.stream('call:weather{"city":"Cuzco"}', tools=[TOOL])
    [call] = first["choices"][0]["delta"]["tool_calls"]
    assert "index" not in call
    assert json.loads(call["function"]["arguments"]) == {"city": "Cuzco"}
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    signature = call["extra_content"]["google"]["thought_signature"]
    assert base64.b64decode(signature)
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": '{"sun":true}'},
    ]
    chat = {"model": MODEL, "messages": turns, "tools": [TOOL]}
    _, body = await client.send("chat/completions", chat)
    assert body["choices"][0]["message"]["content"] == '[gemini-test] echo: [{"sun": true}]'
    call["function"]["arguments"] = '{"city":"Lima"}'
    status, errors = await client.send("chat/completions", chat)
    assert status == 400
    assert errors[0]["error"]["message"] == "Corrupted thought signature."


async def test_a_call_can_be_demanded_and_a_schema_filled(client: Client) -> None:
    """A required tool is called with arguments of its schema; a response format is answered with its JSON."""
    _, body = await client.chat(tools=[TOOL], tool_choice="required")
    [call] = body["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "text"}
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 7}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    _, body = await client.chat(response_format=wanted)
    assert json.loads(body["choices"][0]["message"]["content"]) == {"n": 7}


async def test_embeddings(client: Client) -> None:
    """Vectors have the dimensions that are asked for, as numbers or in base64."""
    request = {"model": "small-embedding", "input": ["llama", "alpaca"], "dimensions": 8}
    _, body = await client.send("embeddings", request)
    vectors = [item["embedding"] for item in body["data"]]
    assert [len(vector) for vector in vectors] == [8, 8]
    _, body = await client.send("embeddings", request | {"encoding_format": "base64", "input": "alpaca"})
    packed = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack("<8f", packed) == pytest.approx(vectors[1])
    status, _ = await client.send("embeddings", request | {"input": [1, 2]})
    assert status == 400


async def test_models(client: Client) -> None:
    """The models are listed and described as OpenAI's protocol has them."""
    _, body = await client.send("models")
    assert [model["id"] for model in body["data"]] == [f"models/{MODEL}", "models/small-embedding"]
    _, body = await client.send(f"models/{MODEL}")
    assert (body["id"], body["object"]) == (f"models/{MODEL}", "model")
    for path in ("models/unknown", "files", "chat"):
        status, errors = await client.send(path)
        assert (status, errors[0]["error"]["status"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("headers", "query", "message"),
    [
        ({}, "", "Missing Authorization header."),
        ({"x-goog-api-key": "key"}, "", "Missing Authorization header."),
        ({"Authorization": "Basic key"}, "", "Invalid Authorization header."),
        ({"Authorization": "Bearer unknown"}, "", "API key not valid. Please pass a valid API key."),
        ({"Authorization": "Bearer key", "x-goog-api-key": "key"}, "", "Multiple authentication credentials"),
        ({"Authorization": "Bearer key"}, "?key=key", "Multiple authentication credentials"),
    ],
)
async def test_only_one_bearer_token_is_taken(
    client: Client, headers: dict[str, str], query: str, message: str
) -> None:
    """Any other credential, or one more, is refused with a list of one error."""
    status, errors = await client.send("models", headers=headers, query=query)
    assert status == 400
    assert errors[0]["error"]["message"].startswith(message)


async def test_two_keys_are_one_too_many_for_gemini_s_paths(
    emulator: GeminiEmulator, http: aiohttp.ClientSession
) -> None:
    """There, too, exactly one credential is accepted, and a bearer token is not a key."""
    for headers, query, status in (
        ({"x-goog-api-key": "key"}, "?key=key", 400),
        ({"x-goog-api-key": "key", "Authorization": "Bearer key"}, "", 400),
        ({"Authorization": "Bearer key"}, "", 401),
    ):
        async with http.get(f"{emulator.url}/v1beta/models{query}", headers=headers) as response:
            assert response.status == status


async def test_faults_show_in_chats(client: Client, emulator: GeminiEmulator) -> None:
    """A key can be refused, and a stream broken, as on Gemini's paths."""
    emulator.inject(Fault.status(429), key="key", times=1)
    status, errors = await client.chat()
    assert (status, errors[0]["error"]["code"]) == (429, 429)
    emulator.inject(Fault.stream_error(503), times=1)
    first, error = await client.stream()
    assert first["choices"]
    assert error["error"]["status"] == "UNAVAILABLE"
    emulator.inject(Fault.stream_cut(), times=1)
    [only] = await client.stream()
    assert only != "[DONE]"
    emulator.inject(Fault.block(), times=1)
    _, blocked = await client.chat()
    assert blocked["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize("body", [{}, {"model": MODEL}, {"model": MODEL, "messages": [{"role": "user"}, 1]}])
async def test_a_chat_that_is_not_one_is_refused(client: Client, body: object) -> None:
    """Without a model or messages, or with anything else in their place, the answer is a 400."""
    status, errors = await client.send("chat/completions", body)
    assert (status, errors[0]["error"]["status"]) == (400, "INVALID_ARGUMENT")


async def test_openai_s_own_paths_are_not_google_s(
    emulator: GeminiEmulator, http: aiohttp.ClientSession
) -> None:
    """Google serves OpenAI's protocol under ``openai`` only."""
    async with http.post(f"{emulator.url}/v1/chat/completions", json={}) as response:
        assert response.status == 404
