from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from google.genai import errors, types

from llm_router.emulator import GeminiEmulator, QuotaSpec, count_input_tokens

if TYPE_CHECKING:
    from tests.emulator.conftest import OpenSDK


MODEL = "gemini-test"


@pytest.mark.slow
@pytest.mark.parametrize("api_version", ["v1", "v1beta"])
async def test_generate(sdk: OpenSDK, api_version: str) -> None:
    """The SDK reads the text, usage, model and finish reason of an answer, on both API versions."""
    async with GeminiEmulator(thought_tokens=5) as emulator, sdk(emulator, api_version=api_version) as models:
        response = await models.generate_content(
            model=MODEL,
            contents="Tell me of llamas",
            config=types.GenerateContentConfig(system_instruction="Be short."),
        )
    assert response.text == "[gemini-test] echo: Tell me of llamas"
    assert response.model_version == MODEL
    assert response.response_id
    assert response.candidates is not None
    assert response.candidates[0].finish_reason == types.FinishReason.STOP
    usage = response.usage_metadata
    assert usage is not None
    assert usage.prompt_token_count is not None
    assert usage.candidates_token_count is not None
    assert usage.prompt_token_count == len("Tell me of llamasBe short.") // 4
    assert usage.candidates_token_count == len(response.text) // 4
    assert usage.thoughts_token_count == 5
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count + 5


async def test_generate_is_cut_at_max_output_tokens(sdk: OpenSDK) -> None:
    """An answer is cut at maxOutputTokens, and its finish reason says so."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        response = await models.generate_content(
            model=MODEL, contents="x" * 400, config=types.GenerateContentConfig(max_output_tokens=7)
        )
    assert response.candidates is not None
    assert response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert response.usage_metadata is not None
    assert response.usage_metadata.candidates_token_count == 7
    assert response.text is not None
    assert len(response.text) == 28


async def test_echo_answers_the_last_turn(sdk: OpenSDK) -> None:
    """The last turn of a conversation is echoed; the tokens of all turns are counted."""
    turns = [
        types.Content(role="user", parts=[types.Part(text="first" * 8)]),
        types.Content(role="model", parts=[types.Part(text="second" * 8)]),
        types.Content(role="user", parts=[types.Part(text="third")]),
    ]
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        response = await models.generate_content(model=MODEL, contents=turns)
    assert response.text == "[gemini-test] echo: third"
    assert response.usage_metadata is not None
    assert response.usage_metadata.prompt_token_count == (40 + 48 + 5) // 4


async def test_responder_makes_up_the_answer(sdk: OpenSDK) -> None:
    """A responder gets the model and the body of the request, and returns the text of the answer."""

    def responder(model: str, body: Mapping[str, Any]) -> str:
        return f"{model} got {body['generationConfig']['temperature']}"

    async with GeminiEmulator(responder=responder) as emulator, sdk(emulator) as models:
        response = await models.generate_content(
            model=MODEL, contents="hello", config=types.GenerateContentConfig(temperature=0.5)
        )
    assert response.text == "gemini-test got 0.5"


async def test_stream(sdk: OpenSDK) -> None:
    """A stream has several chunks with running totals, and only the last one has a finish reason."""
    async with GeminiEmulator(stream_chunks=3) as emulator, sdk(emulator) as models:
        stream = await models.generate_content_stream(model=MODEL, contents="Tell me of llamas")
        chunks = [chunk async for chunk in stream]
        counts = emulator.by_model[MODEL]
    assert len(chunks) == 3
    assert all(chunk.text is not None for chunk in chunks)
    assert "".join(chunk.text or "" for chunk in chunks) == "[gemini-test] echo: Tell me of llamas"
    reasons = [[candidate.finish_reason for candidate in chunk.candidates or ()] for chunk in chunks]
    assert reasons == [[None], [None], [types.FinishReason.STOP]]
    usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata is not None]
    totals = [usage.total_token_count for usage in usages if usage.total_token_count is not None]
    assert len(totals) == len(usages) == len(chunks)
    assert totals == sorted(set(totals))
    assert all(usage.prompt_token_count == 4 for usage in usages)
    assert (counts.accepted, counts.tokens) == (1, 4)


async def test_stream_without_sse_is_a_json_array(http: aiohttp.ClientSession) -> None:
    """A client that does not ask for server-sent events gets the chunks as one array."""
    async with GeminiEmulator() as emulator:
        body = {"contents": [{"parts": [{"text": "hello"}]}]}
        url = f"{emulator.url}/v1beta/models/{MODEL}:streamGenerateContent?key=k"
        async with http.post(url, json=body) as response:
            chunks = json.loads(await response.text())
    assert len(chunks) == 4
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"


async def test_count_tokens(sdk: OpenSDK) -> None:
    """CountTokens counts by the documented rule, and uses no quota."""
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=0)) as emulator, sdk(emulator) as models:
        response = await models.count_tokens(model=MODEL, contents="x" * 41)
        assert emulator.requests == 0
    assert response.total_tokens == 10


async def test_embed(sdk: OpenSDK) -> None:
    """Embeddings are deterministic, have the requested length, and use the quota of their model."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        config = types.EmbedContentConfig(output_dimensionality=16)
        # With a newer model's name the SDK joins several texts into one.
        model = "gemini-embedding-001"
        texts: Any = ["llama", "alpaca"]
        first = await models.embed_content(model=model, contents=texts, config=config)
        second = await models.embed_content(model=model, contents="alpaca", config=config)
        assert emulator.by_model[model].accepted == 2
    assert first.embeddings is not None
    assert second.embeddings is not None
    llama, alpaca = (embedding.values for embedding in first.embeddings)
    assert llama is not None
    assert len(llama) == 16
    assert llama != alpaca == second.embeddings[0].values
    assert sum(value * value for value in llama) == pytest.approx(1, abs=1e-4)


async def test_embed_one(http: aiohttp.ClientSession) -> None:
    """EmbedContent, which the SDK does not call with a key, answers with one embedding."""
    async with GeminiEmulator() as emulator:
        url = f"{emulator.url}/v1beta/models/{MODEL}:embedContent?key=k"
        async with http.post(url, json={"content": {"parts": [{"text": "llama"}]}}) as response:
            body = await response.json()
    assert len(body["embedding"]["values"]) == 768


async def test_models(sdk: OpenSDK) -> None:
    """The declared models can be listed and retrieved; where any exists, those named are listed."""
    async with GeminiEmulator(models=["a", "b"], input_token_limit=99) as emulator, sdk(emulator) as models:
        names = [model.name async for model in await models.list()]
        model = await models.get(model="b")
    assert names == ["models/a", "models/b"]
    assert (model.name, model.input_token_limit) == ("models/b", 99)
    async with GeminiEmulator(listed=["a", "a"]) as emulator, sdk(emulator) as models:
        names = [model.name async for model in await models.list()]
        model = await models.get(model="any-other")
    assert (names, model.name) == (["models/a"], "models/any-other")


async def test_models_do_what_their_names_say(sdk: OpenSDK) -> None:
    """A model that embeds does not generate, nor the other way round; the pages of the list are followed."""
    names = ["a", "b", "c-embedding"]
    async with GeminiEmulator(models=names) as emulator, sdk(emulator) as models:
        pager = await models.list(config=types.ListModelsConfig(page_size=2))
        found = {model.name: model.supported_actions or [] async for model in pager}
        with pytest.raises(errors.ClientError, match="not supported for generateContent") as generating:
            await models.generate_content(model="c-embedding", contents="hi")
        with pytest.raises(errors.ClientError) as embedding:
            await models.embed_content(model="a", contents="hi")
    assert list(found) == [f"models/{name}" for name in names]
    assert ["generateContent" in actions for actions in found.values()] == [True, True, False]
    assert (generating.value.code, embedding.value.code) == (404, 404)


async def test_stats_route(http: aiohttp.ClientSession) -> None:
    """Another process can read the counters as JSON, which contains no key."""
    key = "AIza-secret-of-stats"
    async with GeminiEmulator() as emulator:
        url = f"{emulator.url}/v1beta/models/{MODEL}:generateContent"
        body = {"contents": [{"parts": [{"text": "hello you"}]}]}
        async with http.post(url, json=body, headers={"x-goog-api-key": key}) as response:
            assert response.status == 200
        async with http.get(f"{emulator.url}/__emulator__/stats") as response:
            text = await response.text()
    counts = {"accepted": 1, "refused": 0, "tokens": 2, "peak_requests": 1, "peak_tokens": 2}
    assert json.loads(text) == {
        "requests": 1,
        "accepted": 1,
        "refused": 0,
        "holding": 0,
        "by_model": {MODEL: counts},
        "by_bucket": [{"project": "project-1", "model": MODEL, **counts}],
    }


@pytest.mark.parametrize(
    "path", ["/", "/v1/files", "/v7/models/m:generateContent", "/v1/models/m:predict", "/v1/models"]
)
async def test_other_paths_are_not_found(http: aiohttp.ClientSession, path: str) -> None:
    """Other paths are answered with 404 NOT_FOUND, as by the real API."""
    async with GeminiEmulator() as emulator, http.post(f"{emulator.url}{path}?key=k", json={}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["status"] == "NOT_FOUND"


def test_token_rule() -> None:
    """All texts count together by their bytes, other parts count a fixed number, and the least is 1."""
    assert count_input_tokens({}) == 1
    texts = {"contents": [{"parts": [{"text": "ä" * 3}, {"text": "ab"}]}]}
    assert count_input_tokens(texts) == 2
    image = {"contents": {"parts": {"inlineData": {}}}, "systemInstruction": {"parts": [{"text": "x" * 8}]}}
    assert count_input_tokens(image) == 260


_HALF = "half \ud83d of it"
_TURNS = {"contents": [{"role": "user", "parts": [{"text": _HALF}]}]}
_CALL = {
    "contents": [{"role": "user", "parts": [{"text": 'call:f{"a": "\\ud83d"}'}]}],
    "tools": [{"functionDeclarations": [{"name": "f"}]}],
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"models/{MODEL}:generateContent", _TURNS),
        (f"models/{MODEL}:generateContent", {**_TURNS, "generationConfig": {"maxOutputTokens": 8}}),
        (f"models/{MODEL}:generateContent", _CALL),
        (f"models/{MODEL}:streamGenerateContent?alt=sse", _TURNS),
        (f"models/{MODEL}:countTokens", _TURNS),
        (f"models/{MODEL}:embedContent", {"content": _TURNS["contents"][0]}),
    ],
)
async def test_a_prompt_that_was_cut_amid_a_character(path: str, body: dict[str, Any]) -> None:
    """A lone surrogate, which JSON can express and UTF-8 cannot, is counted and answered."""
    async with GeminiEmulator() as emulator, aiohttp.ClientSession() as session:
        url, headers = f"{emulator.url}/v1beta/{path}", {"x-goog-api-key": "any"}
        async with session.post(url, json=body, headers=headers) as answer:
            assert answer.status == 200
            await answer.read()
    assert count_input_tokens(_TURNS) == (len("half  of it") + 3) // 4
