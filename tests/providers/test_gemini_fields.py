"""Every field of the SDK's config: sent as the bare SDK sends it, or refused with a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from google import genai
from google.genai import types

from llm_router import Deployment
from llm_router.domain.request import Request
from llm_router.errors import InvalidRequestError, ProviderError
from llm_router.providers.gemini import GeminiProvider

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer

SAMPLES: dict[str, Any] = {
    "audio_timestamp": True,
    "audio_transcription_config": {},
    "automatic_continuation": True,
    "automatic_function_calling": {"disable": True},
    "cached_content": "cachedContents/abc",
    "candidate_count": 2,
    "continuation_token": "abc",
    "enable_enhanced_civic_answers": True,
    "frequency_penalty": 0.1,
    "generation_output_config": {},
    "http_options": {"headers": {"x-mine": "b"}, "extra_body": {"a": 1}, "timeout": 5000},
    "image_config": {"aspect_ratio": "1:1"},
    "labels": {"a": "b"},
    "logprobs": 2,
    "max_output_tokens": 7,
    "media_resolution": "MEDIA_RESOLUTION_LOW",
    "model_armor_config": {"prompt_template_name": "x"},
    "model_selection_config": {"feature_selection_preference": "BALANCED"},
    "presence_penalty": 0.1,
    "response_json_schema": {"type": "object"},
    "response_logprobs": True,
    "response_mime_type": "application/json",
    "response_modalities": ["TEXT"],
    "response_schema": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
    "routing_config": {"auto_mode": {"model_routing_preference": "BALANCED"}},
    "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}],
    "seed": 7,
    "service_tier": "flex",
    "should_return_http_response": True,
    "speech_config": "Kore",
    "stop_sequences": ["."],
    "store": True,
    "system_instruction": "Be brief.",
    "temperature": 0.5,
    "thinking_config": {"thinking_budget": 0},
    "tool_config": {"function_calling_config": {"mode": "AUTO"}},
    "tools": [{"google_search": {}}, {"code_execution": {}}, {"function_declarations": [{"name": "f"}]}],
    "top_k": 3,
    "top_p": 0.9,
}
"""A value of each field."""

REFUSED = {
    "audio_timestamp",
    "generation_output_config",
    "model_armor_config",
    "model_selection_config",
    "routing_config",
}
"""The fields that the bare SDK refuses for the Gemini API, too."""


@pytest.fixture
def backend() -> str:
    return "httpx"


async def refused(call: Awaitable[object]) -> bool:
    """Return whether the SDK refuses to make a call."""
    try:
        await call
    except ValueError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # the SDK's own session
async def test_every_field_of_the_config(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A field is in the request as in the bare SDK's own, or is refused by name where the SDK refuses it.

    A schema differs in that it alone asks for JSON, which the SDK has to be told.
    """
    assert types.GenerateContentConfig.model_fields.keys() <= SAMPLES.keys()
    options = types.HttpOptions(base_url=scripted.url, api_version="v1beta")
    client = genai.Client(api_key="x", vertexai=False, http_options=options)
    provider = open_provider(scripted.url, safety_settings={})
    for name in types.GenerateContentConfig.model_fields:
        scripted.requests.clear()
        config = types.GenerateContentConfig(**{name: SAMPLES[name]})
        kind = {"response_mime_type": "application/json"} if name.endswith("_schema") else {}
        bare = config.model_copy(update=kind)
        models = client.aio.models
        call = models.generate_content(model=deployment.model, contents="x", config=bare)
        assert await refused(call) == (name in REFUSED), name
        for form in (config, {name: SAMPLES[name]}):
            request = Request(contents="x", config=form)
            if name in REFUSED:
                with pytest.raises(InvalidRequestError, match=f"config.{name} is not for the Gemini API"):
                    provider.validate(request)
            else:
                provider.validate(request)
                await provider.generate(deployment, request)
        assert len({body for _, body in scripted.requests}) == (name not in REFUSED), name
        assert len(scripted.requests) == (0 if name in REFUSED else 3), name
        sent = ["x-mine: b" in head.lower() for head, _ in scripted.requests]
        assert all(sent) if name == "http_options" else not any(sent)
    await client.aio.aclose()


async def test_a_field_deep_inside(
    scripted: ScriptedServer, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """What the SDK refuses only while it builds the request is a failure that names it, and costs nothing."""
    config = {"image_config": {"output_mime_type": "image/png"}}
    with pytest.raises(ProviderError, match="the Gemini API does not take output_mime_type") as caught:
        await open_provider(scripted.url).generate(deployment, Request(contents="x", config=config))
    assert not caught.value.charged
    assert scripted.requests == []
