"""Signatures: sent back to the model that made them, and to no other; seen in what goes over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_router import Deployment, HistoryStore, Key, MemoryHistory, Reply, Router, Secret, StoredHistory
from llm_router.conversations import Turn
from llm_router.emulator import Fault, GeminiEmulator
from llm_router.providers.gemini import GeminiProvider
from llm_router.records import MemoryRecords
from llm_router.testing import FakeProvider

MakeRouter = Callable[..., Router]
Part = dict[str, Any]

PLACEHOLDER = "skip_thought_signature_validator"
SIGNATURE = base64.b64encode(b"\xfb\xff made by a").decode()
PNG = base64.b64encode(b"\x89PNG").decode()
TEXT: Part = {"text": "Here it is:"}
IMAGE: Part = {"inlineData": {"mimeType": "image/png", "data": PNG}}
CALL: Part = {"functionCall": {"name": "add", "args": {"a": 1}}}
OTHER_CALL: Part = {"functionCall": {"name": "add", "args": {"a": 2}}}
THOUGHT: Part = {"text": "Let me see.", "thought": True}
RESULT: Part = {"function_response": {"name": "add", "response": {"sum": 3}}}


class Pools(Protocol):
    def one(self, model: str = ..., *, rpm: int = ..., priority: int = ...) -> Deployment: ...


def signed(part: Part, signature: str = SIGNATURE) -> Part:
    return {**part, "thoughtSignature": signature}


def seen(parts: list[Part]) -> list[tuple[str, bytes | None]]:
    """Return the text or the image of each part as it was sent, and its signature."""
    signatures = [part.get("thoughtSignature") for part in parts]
    return [
        (part.get("text") or part["inlineData"]["data"], each and base64.urlsafe_b64decode(each))
        for part, each in zip(parts, signatures, strict=True)
    ]


def deployments() -> list[Deployment]:
    key = Key("key-1", Secret("emulated-secret"))
    return [Deployment(key, model) for model in ("model-a", "model-b")]


class Wire:
    """A router on an emulator: the next answers are scripted, and the bodies of the others are kept."""

    def __init__(
        self,
        router: Router,
        emulator: GeminiEmulator,
        bodies: list[dict[str, Any]],
        histories: HistoryStore | None = None,
    ) -> None:
        self.router = router
        self.histories: HistoryStore = MemoryHistory() if histories is None else histories
        self._emulator = emulator
        self.bodies = bodies

    def answer(self, *chunks: list[Part], streamed: bool = False) -> None:
        """Answer the next request with these parts."""
        bodies: list[dict[str, Any]] = [
            {"candidates": [{"content": {"role": "model", "parts": parts}}]} for parts in chunks
        ]
        bodies[-1]["candidates"][0]["finishReason"] = "STOP"
        if not streamed:
            self._emulator.inject(Fault.status(200, body=bodies[0]), times=1)
            return
        events = "".join(f"data: {json.dumps(body)}\r\n\r\n" for body in bodies)
        self._emulator.inject(
            Fault.status(200, body=events, headers={"Content-Type": "text/event-stream"}), times=1
        )

    def fail(self, model: str) -> None:
        """Fail the next request to ``model``."""
        self._emulator.inject(Fault.status(503), model=model, times=1)

    async def turn(self, prompt: Any, model: str, *, streamed: bool = False, **options: Any) -> None:
        """Say ``prompt`` to ``model`` and no other."""
        conversation = self.router.conversation("a", model_preference=model, fallback="none", config=options)
        if streamed:
            async with conversation.stream(prompt) as stream:
                response = await stream.collect()
        else:
            response = await conversation.send(prompt)
        assert response.success
        assert response.attempt_log[-1].model == model

    @property
    def sent(self) -> list[list[Part]]:
        """The parts of each content that was sent last."""
        return [content["parts"] for content in self.bodies[-1]["contents"]]


@pytest.fixture(
    params=[*(pytest.param(each, marks=pytest.mark.slow) for each in ("aiohttp", "stored")), "httpx"]
)
async def wire(request: pytest.FixtureRequest) -> AsyncGenerator[Wire]:
    bodies: list[dict[str, Any]] = []

    def respond(model: str, body: Mapping[str, Any]) -> str:
        bodies.append(dict(body))
        return f"Hello from {model}."

    async with GeminiEmulator(responder=respond) as emulator:
        is_stored = request.param == "stored"
        provider = GeminiProvider(base_url=emulator.url, http_backend="httpx" if is_stored else request.param)
        histories = StoredHistory(MemoryRecords()) if is_stored else MemoryHistory()
        async with Router(deployments(), provider=provider, histories=histories) as router:
            yield Wire(router, emulator, bodies, histories)
        await provider.aclose()


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_image_can_be_edited_by_its_model(wire: Wire, *, streamed: bool) -> None:
    """Its model gets every signature back where it was; another one gets the same parts without."""
    wire.answer([THOUGHT, signed(TEXT), signed(IMAGE, "c2Vjb25k")], streamed=streamed)
    await wire.turn("Draw a cat.", "model-a", streamed=streamed)
    await wire.turn("Make it blue.", "model-a", streamed=streamed)
    assert seen(wire.sent[1]) == [("Here it is:", b"\xfb\xff made by a"), (PNG, b"second")]
    await wire.turn("What is it?", "model-b", streamed=streamed)
    assert seen(wire.sent[1]) == [("Here it is:", None), (PNG, None)]
    await wire.turn("And now?", "model-a", streamed=streamed)
    assert seen(wire.sent[1]) == [("Here it is:", b"\xfb\xff made by a"), (PNG, b"second")]
    assert not any("thoughtSignature" in part for parts in wire.sent[2:] for part in parts)


async def test_a_fallback_within_one_send_goes_without_signatures(wire: Wire) -> None:
    """The request is the same for every attempt; what is sent depends on the model of each."""
    wire.answer([signed(TEXT)])
    await wire.turn("Hello.", "model-a")
    wire.fail("model-a")
    response = await wire.router.conversation("a", model_preference="model-a").send("Again.")
    assert [attempt.model for attempt in response.attempt_log] == ["model-a", "model-b"]
    assert wire.sent[1] == [TEXT]


async def test_a_signature_that_is_streamed_by_itself_is_kept(wire: Wire) -> None:
    """It comes on an empty text at the end; the text before it is signed, and no empty part is sent."""
    wire.answer([{"text": "Hel"}], [{"text": "lo."}], [signed({"text": ""}, "c2ln")], streamed=True)
    await wire.turn("Hi.", "model-a", streamed=True)
    await wire.turn("Bye.", "model-a")
    assert wire.sent[1] == [signed({"text": "Hello."}, "c2ln")]
    await wire.turn("Bye.", "model-b")
    assert wire.sent[1] == [{"text": "Hello."}]


@pytest.mark.parametrize(
    ("model", "signatures"), [("model-a", ["c2ln", None]), ("model-b", [PLACEHOLDER, None])]
)
async def test_a_function_call_is_answered_by_either_model(
    wire: Wire, model: str, signatures: list[str | None]
) -> None:
    """Its own model gets its signature back; another one gets a placeholder, on the first call only."""
    wire.answer([signed(CALL, "c2ln"), OTHER_CALL])
    await wire.turn("Add.", "model-a")
    await wire.turn([{"role": "user", "parts": [RESULT, RESULT]}], model)
    assert [part.get("thoughtSignature") for part in wire.sent[1]] == signatures
    assert [part["functionCall"] for part in wire.sent[1]] == [
        CALL["functionCall"],
        OTHER_CALL["functionCall"],
    ]
    await wire.turn("Thanks.", model)
    expected = signatures if model == "model-a" else [None, None]  # needed only until it was answered
    assert [part.get("thoughtSignature") for part in wire.sent[1]] == expected


async def test_each_step_of_a_turn_is_sent_as_its_model_needs_it(wire: Wire) -> None:
    """Two models may answer the steps of one turn; each gets its own signatures, placeholders for others."""
    wire.answer([signed(CALL, "YWFh")])
    await wire.turn("Add.", "model-a")
    wire.answer([signed(OTHER_CALL, "YmJi")])
    await wire.turn(RESULT, "model-b")
    await wire.turn(RESULT, "model-a")
    assert [wire.sent[index][0]["thoughtSignature"] for index in (1, 3)] == ["YWFh", PLACEHOLDER]


async def test_a_call_that_its_model_did_not_sign_is_sent_back_so(wire: Wire) -> None:
    """A model that does not sign its calls needs no placeholder for them."""
    wire.answer([CALL])
    await wire.turn("Add.", "model-a")
    await wire.turn(RESULT, "model-a")
    assert wire.sent[1] == [CALL]


async def test_a_model_that_draws_gets_placeholders_for_the_answers_of_others(wire: Wire) -> None:
    """Where images are asked for, the first part and all images of an answer are signed."""
    wire.answer([TEXT, {"text": "a cat"}, signed(IMAGE)])
    await wire.turn("Draw a cat.", "model-a")
    await wire.turn("Make it blue.", "model-b", response_modalities=["TEXT", "IMAGE"])
    assert [part.get("thoughtSignature") for part in wire.sent[1]] == [PLACEHOLDER, None, PLACEHOLDER]
    await wire.turn("What is it?", "model-a", response_modalities=["TEXT"])
    assert [part.get("thoughtSignature") for part in wire.sent[3]] == [None]


async def test_a_history_without_models_is_sent_as_it_is(wire: Wire) -> None:
    """An earlier version kept the signature of a call as bytes, and not whose it was."""
    call = {"function_call": {"name": "add", "args": {"a": 1}}, "thought_signature": b"sig"}
    contents = ({"role": "user", "parts": [{"text": "Add."}]}, {"role": "model", "parts": [call]})
    await wire.histories.save("a", (Turn(contents, 2),))
    await wire.turn(RESULT, "model-b")
    assert wire.sent[1] == [signed(CALL, "c2ln")]


async def test_a_provider_that_knows_no_signatures_sees_none(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Neither in contents nor in a history that is read; they are beside them, for who knows the model."""
    part = {"text": "1", "thought_signature": b"sig"}
    provider.script(Reply("1", content={"role": "model", "parts": [part]}))
    async with make_router([pools.one("model-a")]) as router:
        conversation = router.conversation("a")
        response = await conversation.send("one")
        assert response.content["parts"] == [part]
        await conversation.send("two")
        assert (await conversation.history())[1] == {"role": "model", "parts": [{"text": "1"}]}
    request = provider.calls[1].request
    assert request.contents[1] == {"role": "model", "parts": [{"text": "1"}]}
    assert [(each.content, each.model, each.signatures) for each in request.origins or ()] == [
        (1, "model-a", (b"sig",))
    ]
    assert provider.calls[0].request.origins is None


async def test_signatures_that_came_with_a_prompt_are_nobodys(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A prompt may quote another conversation, whose model is not known."""
    quoted = {"role": "model", "parts": [{"text": "1", "thought_signature": b"sig"}]}
    async with make_router([pools.one("model-a")]) as router:
        conversation = router.conversation("a")
        await conversation.send([quoted, "What did you mean?"])
        await conversation.send("Oh.")
    assert [(each.content, each.model) for each in provider.calls[1].request.origins or ()] == [
        (0, None),
        (2, "model-a"),
    ]


@pytest.mark.parametrize("signature", ["not base64!", "", 7, None])
async def test_a_signature_that_cannot_be_read_is_dropped(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, signature: Any
) -> None:
    """A history of another's making may contain anything."""
    answer = {"role": "model", "parts": [{"text": "1", "thoughtSignature": signature}, "more"]}
    histories = MemoryHistory()
    await histories.save("a", (Turn(({"role": "user", "parts": ["one"]}, answer), 2),))
    async with make_router([pools.one("model-a")], histories=histories) as router:
        await router.send_chat(conv_id="a", prompt="two")
    request = provider.calls[0].request
    assert request.contents[1] == {"role": "model", "parts": [{"text": "1"}, "more"]}
    assert [each.signatures for each in request.origins or ()] == [(None, None)]


RAW_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(["", "a", " "]),
        "thought": st.booleans(),
        "thoughtSignature": st.sampled_from(["c2ln", "_-8="]),
        "functionCall": st.sampled_from([{}, {"name": "f"}, {"name": "f", "args": {"a": ""}}]),
        "inlineData": st.sampled_from([{"mimeType": "image/png"}, IMAGE["inlineData"]]),
    },
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.lists(RAW_PARTS, max_size=3), min_size=1, max_size=3), streamed=st.booleans())
@pytest.mark.slow
def test_no_empty_part_goes_over_http(chunks: list[list[Part]], *, streamed: bool) -> None:
    """Whatever parts Gemini answers with."""

    async def talk() -> list[dict[str, Any]]:
        bodies: list[dict[str, Any]] = []

        def respond(model: str, body: Mapping[str, Any]) -> str:
            bodies.append(dict(body))
            return model

        async with (
            GeminiEmulator(responder=respond) as emulator,
            Router(deployments(), base_url=emulator.url) as router,
        ):
            wire = Wire(router, emulator, bodies)
            wire.answer(*chunks, streamed=streamed)
            conversation = router.conversation("a", model_preference="model-a", fallback="none")
            if streamed:
                async with conversation.stream("one") as stream:
                    await stream.collect()
            else:
                await conversation.send("one")
            for model in ("model-a", "model-b"):
                await wire.turn("two", model)
        return bodies

    for body in asyncio.run(talk()):
        for content in body["contents"]:
            assert content["parts"]
            for part in content["parts"]:
                assert part.get("text") or part.get("functionCall") or part.get("inlineData", {}).get("data")
                assert not part.get("thought")
