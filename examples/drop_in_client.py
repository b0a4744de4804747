"""A drop-in client: code written for google-genai, unchanged, over a pool of keys.

Run it with ``python examples/drop_in_client.py``. It uses the bundled emulator in place of the Gemini API.
"""

from __future__ import annotations

import asyncio
from functools import partial

from google.genai import errors

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator
from llm_router.genai import Client

MODEL = "gemini-3.8-flash"
KEYS = [Key(f"gemini-key-{number}", Secret(f"any-text-will-do-{number}")) for number in (1, 2)]
POOL = [Deployment(key, MODEL, quotas=(Quota(Metric.RPM, 2),)) for key in KEYS]


async def ask(client: Client) -> str | None:
    """Ask as google-genai's documentation shows, on whatever event loop."""
    chat = client.aio.chats.create(model=MODEL)
    await chat.send_message("And asynchronously?")
    return (await chat.send_message("And in a chat?")).text


def main() -> None:
    """Make the calls that two keys with two requests a minute allow, and one more."""
    with GeminiEmulator().run_in_thread() as gemini:
        make_router = partial(Router, POOL, base_url=gemini.url)
        with Client(router=make_router, max_wait=0) as client:  # or Client.from_config("keys.json")
            print(client.models.generate_content(model=MODEL, contents="Hello").text)
            for piece in client.models.generate_content_stream(model=MODEL, contents="Tell me a story"):
                print(piece.text, end="|")
            print()
            print(asyncio.run(ask(client)))
            try:
                client.models.generate_content(model=MODEL, contents="Is anything left?")
            except errors.ClientError as error:  # the SDK's own; with max_wait, the call would have waited
                print(f"{error.code}: {error.message}")


if __name__ == "__main__":
    main()
