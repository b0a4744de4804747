"""Functions that the router calls for the model, and answers that are to have a form."""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from google.genai import types

from llm_router import (
    Deployment,
    EmptyAnswerError,
    FunctionCall,
    InvalidRequestError,
    Key,
    Metric,
    Quota,
    Request,
    Response,
    Router,
    Secret,
    Step,
)
from llm_router.emulator import FunctionCall as EmulatedCall
from llm_router.emulator import GeminiEmulator, QuotaSpec
from llm_router.providers.base import Reply
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence


class Place(pydantic.BaseModel):
    """A parameter with a type of its own."""

    city: str
    zone: int = 0


def weather(place: Place, days: int) -> dict[str, str]:
    """Forecast the weather."""
    return {"forecast": f"{place.city}: {days} dry days", "thread": threading.current_thread().name}


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    await asyncio.sleep(0)
    return a + b


def broken(why: str) -> str:
    """Fail."""
    raise ValueError(why)


def _pool(*models: str, rpm: int = 10) -> list[Deployment]:
    quotas = (Quota(Metric.RPM, rpm),)
    return [Deployment(Key("one", Secret("AIzaOfOne")), model, "medium", quotas=quotas) for model in models]


@pytest.fixture
async def emulator() -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator(keys={"AIzaOfOne": "one"}, default_quota=QuotaSpec(rpm=50)) as emulator:
        yield emulator


@pytest.fixture
async def router(emulator: GeminiEmulator) -> AsyncIterator[Router]:
    async with Router(_pool("flash"), base_url=emulator.url) as router:
        yield router


async def test_a_function_is_called_and_its_result_answered(router: Router, emulator: GeminiEmulator) -> None:
    """Each hop is a request against the quota; the response has the usage and attempts of both."""
    response = await router.send('call:add{"a": 1, "b": 2}', config={"tools": [add]})
    assert response.text == '[flash] echo: [{"result": 3}]'
    assert emulator.by_model["flash"].accepted == 2
    assert response.attempts == len(response.attempt_log) == 2
    [step] = response.steps
    assert isinstance(step, Step)
    assert step.model == "flash"
    assert step.results["parts"][0]["function_response"]["response"] == {"result": 3}
    assert response.usage.input_tokens > 10
    [status] = await router.get_all_key_statuses()
    assert status["rpm_usage"].startswith("2/")


async def test_arguments_have_the_types_of_the_parameters(router: Router) -> None:
    """Objects become models, whatever the annotations are written as; blocking functions run in threads."""
    prompt = 'call:weather{"place": {"city": "Cuzco"}, "days": 3}'
    response = await router.send(prompt, config=types.GenerateContentConfig(tools=[weather]))
    result = response.steps[0].results["parts"][0]["function_response"]["response"]
    assert result["forecast"] == "Cuzco: 3 dry days"
    assert result["thread"] != threading.main_thread().name


async def test_arguments_of_no_known_type() -> None:
    """Without an annotation, or with one that says nothing of JSON, they are passed on as they are."""
    seen: list[Any] = []

    def plain(value: Any) -> None:
        seen.append(value)

    def strange(value: Router) -> None:
        seen.append(value)

    def unknown(value: Any) -> None:
        seen.append(value)

    del plain.__annotations__["value"]
    unknown.__annotations__["value"] = "OnlyForTypeCheckers"
    calls = [
        Reply(
            "",
            content={"role": "model", "parts": [{"function_call": {"name": name, "args": {"value": [1]}}}]},
        )
        for name in ("plain", "strange", "unknown")
    ]
    async with Router(_pool("flash"), provider=FakeProvider([*calls, "done"])) as router:
        assert (await router.send("go", config={"tools": [plain, strange, unknown]})).text == "done"
    assert seen == [[1]] * 3


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ('call:broken{"why": "no rain"}', "ValueError: no rain"),
        ('call:broken{"how": "no rain"}', "TypeError"),
        ('call:add{"a": "one", "b": 2}', "ValidationError"),
    ],
    ids=["raises", "another argument", "another type"],
)
async def test_the_model_reads_what_went_wrong(router: Router, prompt: str, error: str) -> None:
    """An error of a function, or of its arguments, is the result of the call."""
    response = await router.send(prompt, config={"tools": [add, broken]})
    assert response.success
    assert error in response.steps[0].results["parts"][0]["function_response"]["response"]["error"]


async def test_several_calls_of_one_answer_are_answered_together(router: Router) -> None:
    """Their results go back in one content, in order."""
    response = await router.send('call:add{"a": 1, "b": 2} call:add{"a": 3, "b": 4}', config={"tools": [add]})
    assert response.text == '[flash] echo: [{"result": 3}, {"result": 7}]'


def _caller(name: str) -> Callable[[str, Mapping[str, Any]], Sequence[EmulatedCall]]:
    return lambda _model, _body: [EmulatedCall(name, {"a": 1, "b": 2})]


async def test_a_model_that_does_not_stop_calling_is_stopped() -> None:
    """The answer after the most calls allowed is returned with the calls that were not made."""
    async with (
        GeminiEmulator(keys={"AIzaOfOne": "one"}, responder=_caller("add")) as emulator,
        Router(_pool("flash", rpm=50), base_url=emulator.url) as router,
    ):
        response = await router.send("x", config={"tools": [add]})
        assert len(response.steps) == 10
        [call] = response.function_calls
        assert (call.name, call.args) == ("add", {"a": 1, "b": 2})
        calling = types.AutomaticFunctionCallingConfig(maximum_remote_calls=2)
        config = types.GenerateContentConfig(tools=[add], automatic_function_calling=calling)
        assert len((await router.send("x", config=config)).steps) == 2
        off = {"tools": [add], "automatic_function_calling": {"disable": True}}
        for config_of in (off, {"tools": [add], "automaticFunctionCalling": {"maximumRemoteCalls": 0}}):
            response = await router.send("x", config=config_of)
            assert not response.steps
            assert response.function_calls[0].name == "add"


async def test_calls_of_other_functions_are_left_to_the_caller() -> None:
    """An answer is returned as it is if one of its calls is of something that was only declared."""
    declared = types.Tool(function_declarations=[types.FunctionDeclaration(name="other")])
    async with (
        GeminiEmulator(
            keys={"AIzaOfOne": "one"}, responder=lambda _m, _b: [EmulatedCall("add"), EmulatedCall("other")]
        ) as emulator,
        Router(_pool("flash"), base_url=emulator.url) as router,
    ):
        response = await router.send("x", config={"tools": [add, declared]})
    assert [call.name for call in response.function_calls] == ["add", "other"]
    assert not response.steps


@pytest.mark.parametrize("tools", [[functools.partial(add, 1)], [add, lambda: 1, lambda: 2]])
async def test_functions_need_names_of_their_own(router: Router, tools: list[Any]) -> None:
    """What cannot be told apart is refused before anything is sent."""
    with pytest.raises(InvalidRequestError, match=r"config\.tools"):
        await router.send("x", config={"tools": tools})


async def test_quota_that_ends_between_two_hops(emulator: GeminiEmulator) -> None:
    """The response says so, and has the steps that were made."""
    async with Router(_pool("flash", rpm=1), base_url=emulator.url) as router:
        response = await router.send('call:add{"a": 1, "b": 2}', config={"tools": [add]})
    assert not response.success
    assert response.retry_after is not None
    assert len(response.steps) == response.attempts == 1


async def test_streams_call_functions_too(router: Router) -> None:
    """The pieces of all answers come in one stream."""
    async with router.stream('call:add{"a": 1, "b": 2}', config={"tools": [add]}) as stream:
        text = "".join([chunk.text async for chunk in stream])
    assert text == '[flash] echo: [{"result": 3}]'
    assert len(stream.response.steps) == 1


async def test_a_stream_left_early_calls_nothing(router: Router) -> None:
    """Its quota is settled, and no function runs."""
    called = []

    def note() -> None:
        """Note the call."""
        called.append(1)

    async with router.stream("call:note{}", config={"tools": [note]}) as stream:
        await stream.read()
    assert not called
    [status] = await router.get_all_key_statuses()
    assert status["rpm_usage"].startswith("1/")


async def test_the_model_that_called_is_asked_again(emulator: GeminiEmulator) -> None:
    """It understands its own signatures; the emulator refuses those of others."""
    async with Router(_pool("flash", "lite"), base_url=emulator.url, strategy=None) as router:
        for _ in range(4):
            response = await router.send('call:add{"a": 1, "b": 2}', config={"tools": [add]})
            assert len({attempt.model for attempt in response.attempt_log}) == 1


async def test_a_conversation_remembers_the_calls(router: Router) -> None:
    """Each step is a turn; the next prompt follows them."""
    chat = router.conversation("a", config={"tools": [add]})
    assert (await chat.send_message('call:add{"a": 1, "b": 2}')).success
    roles = [content["role"] for content in await chat.history()]
    assert roles == ["user", "model", "user", "model"]
    assert (await chat.send("and now?")).text == "[flash] echo: and now?"
    assert len(await chat.history()) == 6


async def test_a_history_can_be_given() -> None:
    """A new conversation begins with it; one that is known keeps its own."""
    provider = FakeProvider(["yes", "no"])
    history = [types.UserContent("my name is Ada"), types.ModelContent("noted")]
    async with Router(_pool("flash"), provider=provider) as router:
        chat = router.conversation("a", history=history)
        assert len(await chat.history()) == 2
        await chat.send("my name?")
        again = router.conversation("a", history=["something else"])
        assert len(await again.history()) == 4
        await again.send("still?")
        assert len(provider.calls[1].request.contents) == 5
        await chat.clear()
        assert await chat.history() == ()


async def test_other_names_of_prompt_and_model() -> None:
    """What users of google-genai type works, also in conversations; both at once is refused."""
    provider = FakeProvider()
    async with Router(_pool("flash", "lite"), provider=provider) as router:
        assert (await router.send(contents="x", model="lite")).model == "lite"
        async with router.stream(contents="x", model="models/lite") as stream:
            assert (await stream.collect()).model == "lite"
        assert (await router.explain(contents="x", model="lite")).tiers
        chat = router.conversation("a", model_preference="flash")
        assert (await chat.send(contents="x", model="lite")).model == "lite"
        assert (await chat.send("x")).model == "flash"
        for twice in ({"contents": "y"}, {"model": "lite", "model_preference": "flash"}):
            with pytest.raises(InvalidRequestError, match="another name"):
                await router.send("x", **twice)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="empty"):
            await router.send()
        with pytest.raises(TypeError, match="did you mean 'model'"):
            await router.send("x", modell="lite")  # type: ignore[call-arg]


async def _asked(router: Router, config: dict[str, Any], *, streamed: bool) -> Response:
    """Return the response to a prompt, sent or streamed."""
    if not streamed:
        return await router.send("x", config=config)
    async with router.stream("x", config=config) as stream:
        return await stream.collect()


# --- answers with a form ------------------------------------------------------------------------------


class Herd(pydantic.BaseModel):
    """A schema as a class."""

    name: str
    size: int


class Color(enum.Enum):
    """A schema of single words."""

    RED = "red"
    BLUE = "blue"


OBJECT = {
    "type": "OBJECT",
    "properties": {"name": {"type": "STRING"}, "tags": {"type": "ARRAY", "items": {"type": "INTEGER"}}},
    "required": ["name"],
}
HERD = {"response_mime_type": "application/json", "response_schema": Herd}


@pytest.mark.parametrize(
    ("config", "text", "parsed"),
    [
        (HERD, '{"name": "a", "size": 3}', Herd(name="a", size=3)),
        ({**HERD, "response_schema": list[Herd]}, '[{"name": "a", "size": 3}]', [Herd(name="a", size=3)]),
        ({"responseMimeType": "application/json"}, "[1, 2]", [1, 2]),
        ({"response_mime_type": "text/x.enum", "response_schema": Color}, "blue", Color.BLUE),
        ({"response_schema": Color}, '"red"', Color.RED),
        ({"response_mime_type": "text/x.enum", "response_schema": {"enum": ["a", "b"]}}, "b\n", "b"),
        ({"response_schema": OBJECT}, '{"name": "a", "tags": [1, 2.0]}', {"name": "a", "tags": [1, 2]}),
        ({"response_schema": types.Schema(type=types.Type.STRING)}, '"a"', "a"),
        (
            {"response_json_schema": Herd.model_json_schema()},
            '{"name": "a", "size": 3}',
            {"name": "a", "size": 3},
        ),
        ({"response_json_schema": {"type": ["string", "null"]}}, "null", None),
        ({"response_json_schema": {"anyOf": [{"type": "null"}, {"enum": [1, 2]}]}}, "2", 2),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_an_answer_is_parsed(config: dict[str, Any], text: str, parsed: object) -> None:
    """What the config asks for is in ``parsed``, sent or streamed."""
    async with (
        GeminiEmulator(keys={"AIzaOfOne": "one"}, responder=lambda _model, _body: text) as emulator,
        Router(_pool("flash"), base_url=emulator.url) as router,
    ):
        for streamed in (False, True):
            response = await _asked(router, config, streamed=streamed)
            assert response.success
            assert response.parsed == parsed
            assert response.text == text


@pytest.mark.parametrize(
    ("config", "text", "reason"),
    [
        (HERD, "a herd", "NOT_JSON"),
        (HERD, '{"name": "a", "si', "NOT_JSON"),
        (HERD, '{"name": "a"}', "SCHEMA_MISMATCH"),
        ({"response_mime_type": "application/json"}, "[" * 100_000, "NOT_JSON"),
        ({"response_mime_type": "text/x.enum", "response_schema": Color}, "green", "SCHEMA_MISMATCH"),
        ({"response_schema": OBJECT}, '{"tags": []}', "SCHEMA_MISMATCH"),
        ({"response_schema": OBJECT}, '{"name": 1}', "SCHEMA_MISMATCH"),
        ({"response_schema": OBJECT}, '{"name": "a", "tags": ["b"]}', "SCHEMA_MISMATCH"),
        ({"response_schema": OBJECT}, "true", "SCHEMA_MISMATCH"),
        ({"response_json_schema": {"enum": ["a"]}}, '"b"', "SCHEMA_MISMATCH"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_an_answer_without_its_form_is_no_success(
    config: dict[str, Any], text: str, reason: str
) -> None:
    """The error says why, and keeps the text, which is paid for; no key is at fault."""
    async with (
        GeminiEmulator(keys={"AIzaOfOne": "one"}, responder=lambda _model, _body: text) as emulator,
        Router(_pool("flash"), base_url=emulator.url) as router,
    ):
        for streamed in (False, True):
            response = await _asked(router, config, streamed=streamed)
            assert (await router.send("y")).success
            assert isinstance(response.error, EmptyAnswerError)
            assert response.error.reason == reason
            assert response.error.text == text
            assert response.attempts == 1
            assert response.parsed is None
            assert text not in str(response.error)


async def test_the_parts_of_an_answer() -> None:
    """Texts, images and calls are dictionaries; a failed response has none."""
    image = {"inline_data": {"mime_type": "image/png", "data": b"\x89PNG"}}
    call = {"function_call": {"name": "f", "args": {"x": 1}, "id": "c1"}}
    content = {"role": "model", "parts": [{"text": "a"}, image, call]}
    provider = FakeProvider([Reply("a", content=content), "plain"])
    async with Router(_pool("flash"), provider=provider) as router:
        response = await router.send(Request(contents="x", config={"tools": []}))
        assert response.parts == ({"text": "a"}, image, call)
        assert response.function_calls == (FunctionCall("f", {"x": 1}, "c1"),)
        assert (await router.send("x")).parts == ()
