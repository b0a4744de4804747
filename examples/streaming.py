"""Streaming: an answer printed piece by piece, and a conversation with a streamed turn.

Run it with ``python examples/streaming.py``. It uses the bundled emulator in place of the Gemini API.
"""

from __future__ import annotations

import asyncio

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator

KEY = Key("gemini-key-01", Secret("any-text-will-do-for-the-emulator"))
DEPLOYMENTS = [Deployment(KEY, "gemini-3.5-flash-lite", "light", quotas=(Quota(Metric.RPM, 15),))]


async def main() -> None:
    """Print a streamed answer, then the second turn of a conversation."""
    async with GeminiEmulator() as gemini, Router(DEPLOYMENTS, base_url=gemini.url) as router:
        async with router.stream("Tell me a story", workload="light") as stream:
            async for chunk in stream:  # raises a SendError if the answer is interrupted
                print(chunk.text, end="|", flush=True)
        print(f" {stream.response.usage.output_tokens} tokens")

        conversation = router.conversation("reader-1", workload="light")
        await conversation.send("I like ships.")
        async with conversation.stream("So what shall I read?") as stream:
            response = await stream.collect()  # does not raise if the answer fails: check response.success
        print(f"{response.text} after {len(await conversation.history())} messages")


if __name__ == "__main__":
    asyncio.run(main())
