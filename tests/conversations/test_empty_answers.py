"""Answers, prompts and histories with nothing in them: no empty part is ever sent."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_router import Deployment, InvalidRequestError, Key, MemoryHistory, Reply, Request, Router, Secret
from llm_router.conversations import Turn
from llm_router.testing import FakeProvider

MakeRouter = Callable[..., Router]


class Pools(Protocol):
    def one(self) -> Deployment: ...


def model_says(*parts: Any) -> dict[str, Any]:
    return {"role": "model", "parts": [*parts]}


def user_says(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "parts": [*parts]}


def has_data(part: dict[str, Any]) -> bool:
    """Say whether the Gemini API would find one of the fields of its "required oneof field 'data'"."""
    fields = part if isinstance(part, Mapping) else part.model_dump()
    ignored = {"thought", "thought_signature", "thoughtSignature", "video_metadata"}
    return any(value for name, value in fields.items() if name not in ignored)


def assert_whole(requests: Iterable[Request]) -> None:
    for request in requests:
        for content in request.contents:
            parts = content["parts"] if isinstance(content, Mapping) else content.parts
            assert parts
            assert all(has_data(part) for part in parts)


EMPTY_PARTS: list[dict[str, Any]] = [
    {},
    {"text": ""},
    {"text": None},
    {"text": "", "thought_signature": b"signed"},
    {"thoughtSignature": "c2lnbmVk"},
    {"text": "let me see", "thought": True},
    {"function_call": {}},
    {"functionCall": {}},
    {"inline_data": {"mime_type": "image/png", "data": b""}},
    {"inlineData": {"mimeType": "image/png"}},
]


@pytest.mark.parametrize(
    "content", [None, model_says(), *map(model_says, EMPTY_PARTS), model_says(*EMPTY_PARTS)], ids=str
)
async def test_an_answer_without_content_is_not_remembered(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, content: Any
) -> None:
    """It is a success that says why it ended, and the next turn goes on as if it had not been."""
    provider.script("Hello.", Reply("", finish_reason="MAX_TOKENS", content=content), "Hello again.")
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        before = await conversation.history()
        response = await conversation.send("two")
        assert (response.success, response.text, response.finish_reason) == (True, "", "MAX_TOKENS")
        assert await conversation.history() == before
        assert (await conversation.send("three")).text == "Hello again."
    assert provider.calls[2].request.contents == [*before, user_says({"text": "three"})]


@pytest.mark.parametrize("pieces", [[], [Reply("")], [Reply(""), Reply("", finish_reason="MAX_TOKENS")]])
async def test_a_stream_without_content_is_not_remembered(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, pieces: list[Reply]
) -> None:
    """Whether it yields nothing at all or nothing but empty texts."""
    provider.script(pieces)
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        async with conversation.stream("one") as stream:
            response = await stream.collect()
        assert (response.success, response.answer) == (bool(pieces), "")
        assert await conversation.history() == ()
        assert (await conversation.send("two")).success
    assert provider.calls[1].request.contents == [user_says({"text": "two"})]


async def test_empty_parts_beside_content_are_not_remembered(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """What an answer has besides is kept as it is."""
    data = {"inline_data": {"mime_type": "image/png", "data": b"png"}}
    content = model_says(*EMPTY_PARTS, {"text": "Here:"}, data, {"text": ""})
    provider.script(Reply("Here:", content=content))
    async with make_router([pools.one()]) as router:
        await router.send_chat(conv_id="a", prompt="draw")
        await router.send_chat(conv_id="a", prompt="more")
    assert provider.calls[1].request.contents[1] == model_says({"text": "Here:"}, data)


async def test_a_text_is_remembered_though_its_content_is_empty(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A provider may give a text, and contents that say nothing."""
    provider.script(Reply("Hello.", content=model_says({"text": ""})))
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        assert await conversation.history() == (user_says({"text": "one"}), model_says({"text": "Hello."}))


async def test_contents_of_another_form_are_left_alone(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A provider of another service gets its own contents back."""
    provider.script(Reply("Hello.", content={"role": "assistant", "content": "Hello."}))
    async with make_router([pools.one()]) as router:
        await router.send_chat(conv_id="a", prompt="one")
        await router.send_chat(conv_id="a", prompt="two")
    assert provider.calls[1].request.contents[1] == {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize("prompt", ["", [], [""], user_says(), user_says({"text": ""}), types.Part(text="")])
async def test_an_empty_prompt_is_refused(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, prompt: Any
) -> None:
    """Before anything is sent, whether or not something was said before."""
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            await conversation.send(prompt)
        with pytest.raises(InvalidRequestError, match="the prompt is empty"):
            await conversation.stream(prompt).__aenter__()
    assert len(provider.calls) == 1


async def test_empty_parts_of_a_prompt_are_left_out(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Of dictionaries and of the SDK's objects; contents without any are sent as they are."""
    whole = types.Content(role="user", parts=[types.Part(text="one")])
    holed = types.Content(role="user", parts=[types.Part(text=""), types.Part(text="two")])
    async with make_router([pools.one()]) as router:
        await router.conversation("a").send([whole, holed, user_says({"text": ""}, {"text": "three"})])
    first, second, third = provider.calls[0].request.contents
    assert first is whole
    assert second == user_says(types.Part(text="two"))
    assert third == user_says({"text": "three"})


@pytest.mark.parametrize(
    "part",
    [
        "Hello?",
        types.File(uri="https://example.org/a"),
        types.Part(file_data=types.FileData(file_uri="https://example.org/a")),
        types.Part(inline_data=types.Blob(data=b"png", mime_type="image/png")),
        {"file_uri": "https://example.org/a", "mime_type": "image/png"},
        {"executableCode": {"code": "1"}},
        {"toolResponse": {"id": "1"}},
    ],
    ids=str,
)
async def test_parts_with_data_are_sent(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools, part: Any
) -> None:
    """Of every kind that the SDK takes, also in the turns after."""
    async with make_router([pools.one()]) as router:
        await router.send_chat(conv_id="a", prompt=[user_says(part)])
        await router.send_chat(conv_id="a", prompt="more")
    for call in provider.calls:
        assert call.request.contents[0] == user_says(part)


async def test_an_old_history_is_cleaned(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """What an earlier version remembered of an empty answer is not sent, nor kept."""
    fine = Turn((user_says({"text": "one"}), model_says({"text": "1"})), 2)
    poisoned = Turn((user_says({"text": "two"}), model_says({"text": ""})), 2)
    holed = Turn((user_says({"text": "three"}), model_says({}, {"text": "3"}, {"text": ""})), 2)
    histories = MemoryHistory()
    await histories.save("a", (fine, poisoned, holed))
    async with make_router([pools.one()], histories=histories) as router:
        await router.send_chat(conv_id="a", prompt="four")
    assert provider.calls[0].request.contents == [
        *fine.contents,
        user_says({"text": "three"}),
        model_says({"text": "3"}),
        user_says({"text": "four"}),
    ]
    assert len(await histories.load("a")) == 3


async def test_a_history_that_an_earlier_version_pickled_is_read(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """Its turns have no model."""
    contents = (user_says({"text": "one"}), model_says({"text": "1"}))
    turn = Turn.__new__(Turn)
    state = {"contents": contents, "tokens": 2, "answers_call": False}
    turn.__setstate__(state)  # type: ignore[attr-defined]
    histories = MemoryHistory()
    await histories.save("a", (turn,))
    async with make_router([pools.one()], histories=histories) as router:
        await router.send_chat(conv_id="a", prompt="two")
    assert provider.calls[0].request.contents[:2] == [*contents]
    assert pickle.loads(pickle.dumps(await histories.load("a")))[0].model is None


async def test_a_call_that_was_never_answered_is_not_sent(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """The answer to it came to nothing and was not remembered, and the user goes on with something else."""
    call = model_says({"function_call": {"name": "add", "args": {}}})
    provider.script("Hello.", Reply("", content=call), Reply("", finish_reason="MAX_TOKENS"))
    async with make_router([pools.one()]) as router:
        conversation = router.conversation("a")
        await conversation.send("one")
        await conversation.send("add")
        answer = {"function_response": {"name": "add", "response": {"sum": 3}}}
        await conversation.send(answer)
        await conversation.send(answer)
        assert provider.calls[3].request.contents[-2:] == [call, user_says(answer)]
        provider.script(Reply("", content=call))
        await conversation.send("add once more")
        await conversation.send("never mind")
    sent = provider.calls[5].request.contents
    assert len(sent) == 7
    assert sent[-1] == user_says({"text": "never mind"})
    assert sent[-2]["parts"][0]["text"].startswith("echo")


async def test_an_answer_to_a_forgotten_call_is_not_sent(
    make_router: MakeRouter, provider: FakeProvider, pools: Pools
) -> None:
    """A history store may have dropped the turn with the call, and with the field that says so."""
    answer = user_says({"functionResponse": {"name": "add", "response": {"sum": 3}}})
    headless = Turn((answer, model_says({"text": "3"})), 2)
    later = Turn((user_says({"text": "thanks"}), model_says({"text": "welcome"})), 2)
    histories = MemoryHistory()
    await histories.save("a", (headless, later))
    async with make_router([pools.one()], histories=histories) as router:
        await router.send_chat(conv_id="a", prompt="more")
    assert provider.calls[0].request.contents == [*later.contents, user_says({"text": "more"})]


PARTS = st.one_of(
    st.sampled_from(EMPTY_PARTS),
    st.fixed_dictionaries({"text": st.text(max_size=3)}, optional={"thought": st.booleans()}),
    st.fixed_dictionaries({"function_call": st.sampled_from([{}, {"name": "f"}, None])}),
    st.fixed_dictionaries({"inline_data": st.fixed_dictionaries({"data": st.sampled_from([b"", b"png"])})}),
)
CONTENTS = st.none() | st.lists(PARTS, max_size=3).map(lambda parts: model_says(*parts))
REPLIES = st.builds(
    Reply,
    st.text(max_size=2),
    finish_reason=st.sampled_from([None, "STOP", "MAX_TOKENS", "OTHER"]),
    content=CONTENTS,
)
ANSWERS = st.lists(st.tuples(st.booleans(), st.lists(REPLIES, min_size=1, max_size=3)), max_size=5)
TURNS = st.lists(
    st.builds(
        Turn,
        st.lists(PARTS, max_size=3).flatmap(
            lambda parts: CONTENTS.map(lambda answer: (user_says(*parts), answer or model_says()))
        ),
        st.just(1),
    ),
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(turns=TURNS, answers=ANSWERS)
@pytest.mark.slow
def test_no_empty_part_is_ever_sent(turns: list[Turn], answers: list[tuple[bool, list[Reply]]]) -> None:
    """Whatever answers come, streamed or whole, and whatever the history was before."""

    async def talk() -> FakeProvider:
        provider, histories = FakeProvider(), MemoryHistory()
        await histories.save("a", tuple(turns))
        key = Key("key-1", Secret("AIza-secret"))
        async with Router([Deployment(key, "model-a")], provider=provider, histories=histories) as router:
            conversation = router.conversation("a")
            for streamed, pieces in answers:
                provider.script(pieces)
                if streamed:
                    async with conversation.stream("next") as stream:
                        await stream.collect()
                else:
                    await conversation.send("next")
            await conversation.send("last")
        return provider

    provider = asyncio.run(talk())
    assert len(provider.calls) == len(answers) + 1
    assert_whole(call.request for call in provider.calls)
