"""Tools, a schema, an image and embeddings, in a few lines each.

Run it with ``python examples/tools.py``. It uses the bundled emulator in place of the Gemini API.
"""

from __future__ import annotations

import asyncio

from google.genai import types
from pydantic import BaseModel

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator

KEY = Key("gemini-key-01", Secret("any-text-will-do-for-the-emulator"))
DEPLOYMENTS = [
    Deployment(KEY, "gemini-3.8-flash", "medium", quotas=(Quota(Metric.RPM, 10),)),
    Deployment(KEY, "gemini-embedding-001", "light", quotas=(Quota(Metric.RPM, 100),)),
]
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c63f8cfc0f01f0005000201a5f645400000000049454e44ae426082"
)


class City(BaseModel):
    """What the model is to answer with."""

    name: str
    inhabitants: int


async def weather(city: str) -> dict[str, str | int]:
    """Return the weather of a city."""
    return {"city": city, "degrees": 21}


async def main() -> None:
    """Use each of them once."""
    async with GeminiEmulator() as gemini, Router(DEPLOYMENTS, base_url=gemini.url) as router:
        # The emulator calls a function where the prompt says so; a model decides that by itself.
        answer = await router.send('call:weather{"city": "Rome"}', config={"tools": [weather]})
        print(f"{answer.text} after {answer.attempts} requests")

        schema = {"response_mime_type": "application/json", "response_schema": City}
        city = (await router.send("A city, please", config=schema)).parsed
        print(f"a {type(city).__name__}")

        image = types.Part.from_bytes(data=PIXEL, mime_type="image/png")  # or an image of Pillow
        print((await router.send([image, "What is this?"])).text)

        tokens = await router.count_tokens([image, "What is this?"])
        embeddings = await router.embed(["a text", "another one"], output_dimensionality=8)
        print(f"{tokens} tokens, {len(embeddings.vectors)} vectors of {embeddings.model}")


if __name__ == "__main__":
    asyncio.run(main())
