"""The shortest way to start: a keys file with two keys, and three prompts.

Run it with ``python examples/quickstart.py``. It uses the bundled emulator in place of the Gemini API; with
real keys in ``keys.json`` and ``.env``, ``Router.from_config()`` is the whole set-up.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from llm_router import Router
from llm_router.emulator import GeminiEmulator

KEYS = {
    "keys": [
        {
            "key_id": "gemini-key-01",
            "provider": "gemini",
            "model_name": "gemini-3.5-flash-lite",
            "tags": {"workload": "light", "priority": 1},
            "limits": {"rpm": 15, "tpm": 250_000, "rpd": 1_000},  # those of your own project
        },
        {
            "key_id": "gemini-key-02",
            "provider": "gemini",
            "model_name": "gemini-3.8-flash",
            "tags": {"workload": "medium", "priority": 1},
            "limits": {"rpm": 10, "tpm": 250_000, "rpd": 250},
        },
    ]
}


def make_router(url: str) -> Router:
    """Return a router made from a keys file and an environment, which the example makes up."""
    env = {
        "API_KEY_gemini_key_01": "any-text-will-do-for-the-emulator-1",
        "API_KEY_gemini_key_02": "any-text-will-do-for-the-emulator-2",
        "GOOGLE_GEMINI_BASE_URL": url,
    }
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys.json")
        keys.write_text(json.dumps(KEYS), encoding="utf-8")
        return Router.from_config(keys, env=env, env_file=None, store="memory://")


async def main() -> None:
    """Send three prompts, and print the answers and the used quotas."""
    async with GeminiEmulator() as gemini, make_router(gemini.url) as router:
        for prompt, workload in [
            ("Summarise this meeting", "light"),
            ("Review this function", "medium"),
            ("Design a trading system", "heavy"),  # without a heavy key, the nearest workload answers
        ]:
            response = await router.send(prompt, workload=workload)
            if response.success:
                print(f"{workload:>6} → {response.model} ({response.key_id}): {response.text}")
            else:
                print(f"{workload:>6} → {response.error}; retry after {response.retry_after} s")

        for status in await router.get_all_key_statuses():
            print(f"{status['key_id']} {status['model']}: {status['rpm_usage']} requests this minute")


if __name__ == "__main__":
    asyncio.run(main())
