"""Building configs from requests, and refusing wrong requests before they are sent."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from google.genai import types

from llm_router import Deployment
from llm_router.domain.request import Request
from llm_router.errors import ConfigError, InvalidRequestError
from llm_router.providers._gemini_config import DEFAULT_SAFETY, build_config
from llm_router.providers._gemini_session import HttpBackend
from llm_router.providers.gemini import GeminiProvider

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer


def build(**fields: Any) -> Any:
    return build_config(Request(contents="x", **fields), DEFAULT_SAFETY)


def thresholds(config: Any) -> dict[str, Any]:
    return {
        setting["category"].removeprefix("HARM_CATEGORY_"): setting["threshold"]
        for setting in config.safety_settings
    }


@pytest.mark.parametrize("form", [dict, types.GenerateContentConfig], ids=["dict", "model"])
def test_named_arguments_override_the_config(form: Any) -> None:
    """Named arguments win; the rest of the config stays, and is not changed in place."""
    config = form(temperature=1.0, max_output_tokens=5, top_k=3, stop_sequences=["."])
    built = build(config=config, temperature=0.0, system_instruction="Be brief.")
    assert (built.temperature, built.max_output_tokens, built.top_k) == (0.0, 5, 3)
    assert built.stop_sequences == ["."]
    assert built.system_instruction == "Be brief."
    assert dict(config)["temperature"] == 1.0
    assert isinstance(built, types.GenerateContentConfig)


def test_config_dict_in_camel_case() -> None:
    """The config's dict may use the camelCase of the API."""
    assert build(config={"maxOutputTokens": 9}).max_output_tokens == 9


@pytest.mark.parametrize("name", ["response_schema", "responseSchema", "response_json_schema"])
def test_a_schema_asks_for_json(name: str) -> None:
    """A schema alone is one for JSON; a type of text that is stated stays, and none is made up."""
    schema = {"type": "STRING", "enum": ["a", "b"]}
    assert build(config={name: schema}).response_mime_type == "application/json"
    stated = build(config={name: schema, "response_mime_type": "text/x.enum"})
    assert stated.response_mime_type == "text/x.enum"
    assert build(config={name: None}).response_mime_type is None
    assert build(config={"top_k": 3}).response_mime_type is None


@pytest.mark.parametrize("tool", ["search", 5, None, ["search"]], ids=repr)
def test_what_is_no_tool_is_refused(tool: Any) -> None:
    """The message says which of the tools is none, and does not repeat it."""
    with pytest.raises(InvalidRequestError) as caught:
        build(config={"tools": [print, types.Tool(google_search=types.GoogleSearch()), tool]})
    kind = type(tool).__name__
    assert str(caught.value) == f"config.tools[2] must be a function or a Tool, not a {kind}"


def test_one_request_per_call() -> None:
    """Options that make the SDK send more than one request are off, and so is the raw HTTP response."""
    wish = {
        "automatic_function_calling": {"disable": False, "maximum_remote_calls": 5},
        "automatic_continuation": True,
        "should_return_http_response": True,
    }
    built = build(config=wish)
    assert built.automatic_function_calling.disable is True
    assert built.automatic_function_calling.model_fields_set == {"disable"}
    assert built.automatic_continuation is False
    assert built.should_return_http_response is None


def test_safety_of_provider_config_and_call() -> None:
    """A call's own thresholds override the config's, and those override the provider's."""
    config = {
        "safety_settings": [
            {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"},
            {"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_ONLY_HIGH"},
        ]
    }
    built = build(config=config, safety_settings={"hate_speech": "off"})
    assert thresholds(built) == {
        "HARASSMENT": "BLOCK_ONLY_HIGH",
        "HATE_SPEECH": "OFF",
        "SEXUALLY_EXPLICIT": "BLOCK_NONE",
        "DANGEROUS_CONTENT": "BLOCK_NONE",
    }


@pytest.mark.parametrize("form", [dict, types.GenerateContentConfig], ids=["dict", "model"])
@pytest.mark.parametrize("nothing", [None, []])
def test_no_safety_settings_in_the_config(form: Any, nothing: Any) -> None:
    """A config without safety settings leaves the provider's in force."""
    built = build(config=form(safety_settings=nothing, top_k=3))
    assert built.top_k == 3
    assert set(thresholds(built).values()) == {"BLOCK_NONE"}
    assert len(built.safety_settings) == 4


def test_fields_set_later_are_checked_too() -> None:
    """A config is checked as it is now, not as it was when it was made."""
    config = types.GenerateContentConfig()
    config.temperature = "hot"  # type: ignore[assignment]
    with pytest.raises(InvalidRequestError, match="config is wrong: temperature"):
        build(config=config)


def test_safety_names_of_the_sdk() -> None:
    """Members of the SDK's enums are accepted as names."""
    own = {types.HarmCategory.HARM_CATEGORY_HARASSMENT: types.HarmBlockThreshold.BLOCK_LOW_AND_ABOVE}
    assert thresholds(build(safety_settings=own))["HARASSMENT"] == "BLOCK_LOW_AND_ABOVE"


async def test_safety_of_the_provider_is_sent(
    scripted: ScriptedServer, backend: HttpBackend, deployment: Deployment
) -> None:
    """A provider's own thresholds override single categories of the default."""
    provider = GeminiProvider(
        base_url=scripted.url, http_backend=backend, safety_settings={"HARASSMENT": "BLOCK_ONLY_HIGH"}
    )
    await provider.generate(deployment, Request(contents="x"))
    await provider.aclose()
    sent = {setting["category"]: setting["threshold"] for setting in scripted.bodies[0]["safetySettings"]}
    assert sent == dict(DEFAULT_SAFETY) | {"HARM_CATEGORY_HARASSMENT": "BLOCK_ONLY_HIGH"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"RUDENESS": "OFF"}, "unknown safety category 'RUDENESS'"),
        ({"HARASSMENT": "SOME"}, "unknown safety threshold 'SOME'"),
        ({5: "OFF"}, "unknown safety category 5"),
        ({"HARASSMENT": None}, "unknown safety threshold None"),
        (["HARASSMENT"], "must map category to threshold, not be a list"),
    ],
)
def test_wrong_safety_settings(settings: Any, problem: str) -> None:
    """A wrong safety setting is named and refused, at construction and per call."""
    with pytest.raises(ConfigError, match=problem):
        GeminiProvider(safety_settings=settings)
    with pytest.raises(InvalidRequestError, match=problem):
        GeminiProvider().validate(Request(contents="x", safety_settings=settings))


def test_http_options_of_the_caller() -> None:
    """A caller may set headers, a timeout and extra fields of the body."""
    wish = {"headers": {"x-trace": "1"}, "timeout": 5000, "extra_body": {"labels": {}}}
    assert build(config={"http_options": wish}).http_options.timeout == 5000


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"retry_options": {"attempts": 5}}, "http_options.retry_options is the router's business"),
        ({"base_url": "http://elsewhere"}, "http_options.base_url is the router's business"),
        ({"api_version": "v1"}, "http_options.api_version is the router's business"),
        ({"headers": {"X-Goog-Api-Key": "mine"}}, "leave 'X-Goog-Api-Key' to the router"),
        ({"headers": {"x-trace\n": "1"}}, r"'x-trace\\n' is not the name of a header"),
        ({"headers": {"x trace": "1"}}, "'x trace' is not the name of a header"),
        ({"headers": {"x-träce": "1"}}, "'x-träce' is not the name of a header"),
        ({"headers": {"": "1"}}, "'' is not the name of a header"),
        ({"headers": {"x-trace": "1\r\nx-goog-api-key: mine"}}, "the value of 'x-trace' has a character"),
        ({"headers": {"x-trace": "1\x00"}}, "the value of 'x-trace' has a character"),
        ({"headers": {"x-trace": "1\x7f"}}, "the value of 'x-trace' has a character"),
        ({"headers": {"x-trace": "☃"}}, "the value of 'x-trace' has a character"),
    ],
)
def test_http_options_of_the_router(
    options: dict[str, dict[str, int]] | dict[str, str] | dict[str, dict[str, str]], problem: str
) -> None:
    """Options that would retry, send the key elsewhere, or cannot become HTTP are refused."""
    with pytest.raises(InvalidRequestError, match=problem):
        GeminiProvider().validate(Request(contents="x", config={"http_options": options}))


def test_the_value_of_a_header_is_not_shown() -> None:
    """A header that is refused may be a credential: the message names it only."""
    wish = {"http_options": {"headers": {"x-token": "private\n"}}}
    with pytest.raises(InvalidRequestError) as caught:
        GeminiProvider().validate(Request(contents="x", config=wish))
    assert "private" not in str(caught.value)


MESSAGE = {"role": "user", "content": "hi"}
"""A message as OpenAI's API has it."""


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"contents": ""}, "contents are empty"),
        ({"contents": None}, "contents are empty"),
        ({"contents": []}, "contents are empty"),
        ({"contents": 5}, "contents is wrong"),
        ({"contents": [{"role": "user", "parts": 5}]}, "contents is wrong"),
        ({"max_output_tokens": 0}, "max_output_tokens must be a whole number of 1 or more, not 0"),
        ({"max_output_tokens": 1.5}, "max_output_tokens must be"),
        ({"max_output_tokens": True}, "max_output_tokens must be"),
        ({"temperature": -1}, "temperature must be a number of 0 or more, not -1"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"config": {"temprature": 1}}, "config is wrong: temprature: Extra inputs are not permitted"),
        ({"config": {"top_k": "many", "seed": "x"}}, r"config is wrong: .*\(and 1 more\)"),
        ({"config": 5}, "config must be a GenerateContentConfig or its dict, not a int"),
        ({"system_instruction": 5}, "config is wrong: system_instruction"),
        ({"system_instruction": []}, "system_instruction is empty: pass"),
        ({"system_instruction": ()}, "system_instruction is empty: pass"),
        ({"config": {"system_instruction": []}}, "system_instruction is empty: pass"),
        ({"system_instruction": [types.Content(parts=[types.Part(text="x")])]}, "system_instruction must be"),
        ({"contents": MESSAGE}, "contents is wrong: a message of OpenAI's API .*'parts'"),
        ({"contents": ["x", MESSAGE]}, "contents is wrong: a message of OpenAI's API .*'parts'"),
        ({"contents": [{"role": "user", "parts": [MESSAGE]}]}, "a message of OpenAI's API"),
        ({"contents": [MESSAGE | {"role": "system"}]}, "system_instruction="),
        ({"contents": [MESSAGE | {"role": "assistant"}]}, "'model'"),
        ({"contents": [[]]}, r"contents\[0\] is empty: leave it out"),
        ({"contents": ["x", {}]}, r"contents\[1\] is empty: leave it out"),
        ({"contents": [[types.UserContent("x")]]}, r"contents\[0\]\[0\] must be a part, not a UserContent"),
        ({"contents": types.File(name="files/a")}, "contents is a File without uri"),
        ({"contents": ["x", types.File(name="files/a")]}, r"contents\[1\] is a File without uri"),
        ({"contents": [["x", types.File(name="files/a")]]}, r"contents\[0\]\[1\] is a File without uri"),
    ],
)
def test_wrong_requests(fields: Any, problem: str) -> None:
    """A wrong request is refused; the message has the place of its first problem, but no value."""
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        GeminiProvider().validate(Request(**{"contents": "x", **fields}))
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "instruction",
    ["x", ["x", types.Part(text="y")], types.Part(text="x"), types.UserContent("x"), {"text": "x"}],
)
def test_valid_instructions(instruction: Any) -> None:
    """Every form of a system instruction that the SDK can send is valid."""
    GeminiProvider().validate(Request(contents="x", system_instruction=instruction))


def test_values_are_not_repeated() -> None:
    """The values of a config, such as a header with a credential, are not in the message."""
    with pytest.raises(InvalidRequestError) as caught:
        GeminiProvider().validate(Request(contents="x", config={"labels": "a credential"}))
    assert "credential" not in str(caught.value)


@pytest.mark.parametrize(
    "contents",
    [
        "Hello?",
        ["Hello", {"text": "you"}],
        [{"role": "user", "parts": [{"text": "Hello?"}]}],
        types.Part(text="Hello?"),
        [types.Content(role="user", parts=[types.Part(text="Hello?")])],
        {"inline_data": {"mime_type": "image/png", "data": b"png"}},
        [["Hello", types.Part(text="you")], types.File(uri="https://x/files/a", mime_type="image/png")],
    ],
    ids=lambda value: type(value).__name__,
)
def test_valid_contents(contents: Any) -> None:
    """Every form of contents that the SDK accepts is valid."""
    GeminiProvider().validate(Request(contents=contents, max_output_tokens=1, temperature=0))


def test_an_image_of_pillow_is_valid() -> None:
    """If Pillow is installed, its images are valid contents, alone and among others."""
    image = pytest.importorskip("PIL.Image").new("RGB", (1, 1))
    GeminiProvider().validate(Request(contents=image))
    GeminiProvider().validate(Request(contents=["What is this?", image]))


@pytest.mark.slow
def test_checking_loads_the_sdk_and_estimating_does_not() -> None:
    """Validating imports the SDK, so that the import does not fall between quota and request."""
    program = (
        "import sys; from llm_router.domain.request import Request;"
        "from llm_router.providers.gemini import GeminiProvider;"
        "GeminiProvider().estimate_tokens(Request(contents=['x', {'text': 'y'}], config={'tools': [{}]}));"
        "print('google.genai' in sys.modules);"
        "GeminiProvider().validate(Request(contents='x', max_output_tokens=5, system_instruction='y'));"
        "print('google.genai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
