import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from google.genai import errors, types

from llm_router.emulator import FunctionCall, GeminiEmulator
from llm_router.emulator.responding import echo
from llm_router.emulator.schemas import example

if TYPE_CHECKING:
    from tests.emulator.conftest import OpenSDK

MODEL = "gemini-test"


class Herd(pydantic.BaseModel):
    """A schema with what simple schemas have."""

    name: str
    size: int = pydantic.Field(ge=3)
    tags: list[str]
    leader: str | None
    young: bool


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_functions_are_called_and_their_results_answered(sdk: "OpenSDK") -> None:
    """A prompt asks for a call, the SDK makes it, and the answer has its result: two requests."""
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        config = types.GenerateContentConfig(tools=[add])
        response = await models.generate_content(
            model=MODEL, contents='call:add{"a": 1, "b": 2}', config=config
        )
        plain = await models.generate_content(model=MODEL, contents="call:unknown{}", config=config)
        assert emulator.by_model[MODEL].accepted == 3
    assert response.text == '[gemini-test] echo: [{"result": 3}]'
    assert plain.text == "[gemini-test] echo: call:unknown{}"


async def test_a_responder_can_call(sdk: "OpenSDK") -> None:
    """Calls that a responder returns come whole in one chunk, the first with a signature of its own."""

    def respond(model: str, body: Mapping[str, Any]) -> list[FunctionCall]:
        return [FunctionCall("f", {"x": 1}), FunctionCall("g")]

    async with GeminiEmulator(responder=respond) as emulator, sdk(emulator) as models:
        stream = await models.generate_content_stream(model=MODEL, contents="hi")
        first, last = [chunk async for chunk in stream]
    assert first.function_calls is not None
    assert [(call.name, call.args) for call in first.function_calls] == [("f", {"x": 1}), ("g", {})]
    assert first.candidates is not None
    assert first.candidates[0].content is not None
    assert first.candidates[0].content.parts is not None
    assert [bool(part.thought_signature) for part in first.candidates[0].content.parts] == [True, False]
    assert last.candidates is not None
    assert last.candidates[0].finish_reason == types.FinishReason.STOP


async def test_a_signature_belongs_to_its_call(sdk: "OpenSDK") -> None:
    """A call that comes back with other arguments than those that were signed is refused."""
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="f")])
    config = types.GenerateContentConfig(tools=[tool])
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        response = await models.generate_content(model=MODEL, contents='call:f{"a": 1}', config=config)
        assert response.candidates is not None
        turn = response.candidates[0].content
        assert turn is not None
        assert turn.parts is not None
        assert turn.parts[0].function_call is not None
        history = [turn, types.Content(role="user", parts=[types.Part(text="go on")])]
        await models.generate_content(model=MODEL, contents=history, config=config)
        turn.parts[0].function_call.args = {"a": 2}
        with pytest.raises(errors.ClientError, match="Corrupted thought signature"):
            await models.generate_content(model=MODEL, contents=history, config=config)


async def test_a_schema_is_answered_with_fitting_json(sdk: "OpenSDK") -> None:
    """The SDK parses the answer into the model it was given."""
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=Herd)
    async with GeminiEmulator() as emulator, sdk(emulator) as models:
        response = await models.generate_content(model=MODEL, contents="hi", config=config)
    assert isinstance(response.parsed, Herd)
    assert response.parsed.size == 3


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (
            Herd.model_json_schema(),
            {"name": "text", "size": 3, "tags": ["text"], "leader": "text", "young": True},
        ),
        ({"type": "STRING", "enum": ["a", "b"]}, "a"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"const": 5}}}, 5),
        ({"allOf": [{"type": "object"}, {"properties": {"d": {"format": "date"}}}]}, {"d": "2026-01-01"}),
        ({"type": "array", "items": {"type": "number", "maximum": -1}, "minItems": 2}, [-2, -2]),
        ({"type": ["null", "string"], "minLength": 6, "maxLength": 6}, "textxx"),
        ({"anyOf": [{"type": "null"}, {"type": "integer", "exclusiveMinimum": 3}]}, 4),
        ({"type": "null"}, None),
    ],
)
def test_an_example_fits_its_schema(schema: dict[str, Any], value: object) -> None:
    """Types, bounds, choices and references are followed."""
    assert example(schema) == value


def test_a_schema_of_itself_ends() -> None:
    """A recursive schema has an example of a few levels."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
    assert json.dumps(example({"$ref": "#/$defs/node", "$defs": {"node": node}})).count("next") == 6


@pytest.mark.parametrize("word", ["parameters", "parametersJsonSchema", "parameters_json_schema"])
def test_a_demanded_call_fits_its_schema(word: str) -> None:
    """In whichever of the API's fields, and in whichever case, the schema came."""
    schema = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
    body = {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "tools": [{"functionDeclarations": [{"name": "f", word: schema}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    }
    assert echo(MODEL, body) == (FunctionCall("f", {"size": 1}),)
