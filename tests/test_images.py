"""Images and other data, in prompts and in answers."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from google.genai import types

from llm_router import MemoryHistory, Router
from llm_router.emulator import Fault, GeminiEmulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.conftest import Pools

PNG = b"\x89PNG\r\n\x1a\n-and-more\xff\xfb"
DRAWN = {"inline_data": {"mime_type": "image/png", "data": PNG}}


class Listener:
    """Answers, and keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []

    def __call__(self, _model: str, body: Mapping[str, Any]) -> str:
        self.bodies.append(body)
        return "seen"

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of the last prompt."""
        parts: list[dict[str, Any]] = self.bodies[-1]["contents"][-1]["parts"]
        return parts

    @property
    def data(self) -> bytes:
        """The data in the last prompt."""
        (blob,) = (part["inlineData"] for part in self.parts if "inlineData" in part)
        return base64.urlsafe_b64decode(blob["data"].replace("+", "-").replace("/", "_"))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def emulator(listener: Listener) -> AsyncIterator[GeminiEmulator]:
    async with GeminiEmulator(responder=listener) as emulator:
        yield emulator


@pytest.fixture
async def router(emulator: GeminiEmulator, pools: Pools) -> AsyncIterator[Router]:
    async with Router([pools.one("flash")], base_url=emulator.url, max_retries=0) as router:
        yield router


def answer_with(*parts: dict[str, Any]) -> Fault:
    """Return the fault that answers with these parts."""
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP"}
    return Fault.status(200, body={"candidates": [candidate], "modelVersion": "flash"})


async def test_an_image_of_pillow_goes_in(router: Router, listener: Listener) -> None:
    """An image of Pillow is sent with its pixels, beside text, alone, and in a conversation."""
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.new("RGB", (2, 1), (255, 0, 0))
    conversation = router.conversation("a")
    for send in (router.send, conversation.send):
        for prompt in ([image, "What is this?"], image):
            assert (await send(prompt)).text == "seen"
            if send == router.send:
                pixel = pillow.open(io.BytesIO(listener.data)).convert("RGB").getpixel((1, 0))
                assert pixel[0] > 250
    sent = [part for content in listener.bodies[-1]["contents"] for part in content["parts"]]
    assert ["inlineData" in part for part in sent] == [True, False, False, True]


async def test_a_file_in_a_conversation(router: Router, listener: Listener) -> None:
    """An uploaded file is named in the request, and in the turns that follow."""
    file = types.File(uri="https://example.com/talk.txt", mime_type="text/plain")
    conversation = router.conversation("a", history=[])
    for prompt in (file, "And?"):
        await conversation.send(prompt)
        contents = listener.bodies[-1]["contents"]
        named = [part["fileData"] for each in contents for part in each["parts"] if "fileData" in part]
        assert [next(iter(set(data.values()) - {"text/plain"})) for data in named] == [file.uri]


@pytest.mark.parametrize(
    "part",
    [
        types.Part.from_bytes(data=PNG, mime_type="image/png"),
        {"inline_data": {"mime_type": "image/png", "data": PNG}},
    ],
    ids=["part", "dict"],
)
async def test_bytes_go_in(router: Router, listener: Listener, part: Any) -> None:
    """Inline data arrives as it was given, by send, stream and conversation."""
    await router.send([part, "What is this?"])
    assert listener.data == PNG
    async with router.stream(part) as stream:
        assert (await stream.collect()).text == "seen"
    assert listener.data == PNG
    await router.conversation("a").send(part)
    assert listener.data == PNG


async def test_an_image_comes_out(router: Router, emulator: GeminiEmulator) -> None:
    """An answer's data is in its parts, beside the text."""
    image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}
    emulator.inject(answer_with({"text": "Here:"}, image), times=2)
    response = await router.send("Draw", config={"response_modalities": ["TEXT", "IMAGE"]})
    assert response.text == "Here:"
    assert response.parts == ({"text": "Here:"}, DRAWN)


async def test_an_image_stays_in_a_conversation(
    emulator: GeminiEmulator, listener: Listener, pools: Pools
) -> None:
    """An image that a model drew goes back to it with the next turn."""
    image = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}
    async with Router([pools.one("flash")], base_url=emulator.url, histories=MemoryHistory()) as router:
        conversation = router.conversation("a")
        emulator.inject(answer_with(image), times=1)
        drawn = await conversation.send("Draw")
        assert (drawn.text, drawn.parts) == ("", (DRAWN,))
        await conversation.send("Make it red")
    (blob,) = (part["inlineData"] for part in listener.bodies[-1]["contents"][1]["parts"])
    assert base64.urlsafe_b64decode(blob["data"].replace("+", "-").replace("/", "_")) == PNG
