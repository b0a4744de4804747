"""The programs of child processes; ``_fleet.py`` starts them as ``_child.py ROLE JSON``.

Each reports once that it is ready, waits for a line on its standard input, does its work and reports the
result.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from _harness import percentile
from _subjects import PROMPT_TOKENS, Instant, deployments

from llm_router import Demand, Router
from llm_router.providers.gemini import GeminiProvider

__all__: list[str] = []

PROMPT = "word " * 20


def report(value: Any) -> None:
    """Send a value to the parent, as one line of JSON."""
    sys.stdout.write(json.dumps({"value": value}) + "\n")
    sys.stdout.flush()


async def wait_for_start() -> Any:
    """Report that this child is ready; return the parent's message that lets it begin."""
    report("ready")
    return json.loads(await asyncio.to_thread(sys.stdin.readline))


# --- stores.py ----------------------------------------------------------------------------------------


async def sqlite(task: dict[str, Any]) -> None:
    """Reserve and settle on a file that other processes use too."""
    from llm_router.stores.sqlite import SQLiteStore  # noqa: PLC0415 - only this role needs it

    store = SQLiteStore(task["path"])
    pool = deployments(task["keys"])
    size = min(8, len(pool))
    ring = pool + pool[:size]
    demand, numbers, waits = Demand(1, PROMPT_TOKENS), itertools.count(), []

    async def pair() -> None:
        number = next(numbers)
        name, start = f"{task['name']}-{number:x}", number % len(pool)
        began = time.perf_counter()
        await store.reserve(name, ring[start : start + size], demand, 60.0)
        waits.append(time.perf_counter() - began)
        await store.settle(name, demand)

    await pair()  # opens the file
    await wait_for_start()
    waits.clear()
    began = time.perf_counter()

    async def worker() -> None:
        while time.perf_counter() - began < task["seconds"]:
            await pair()

    await asyncio.gather(*(worker() for _ in range(task["in_flight"])))
    took = time.perf_counter() - began
    await store.aclose()
    waits.sort()
    shares = {"p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99), "longest": waits[-1]}
    report({"per_second": len(waits) / took, **shares})


# --- contention.py ------------------------------------------------------------------------------------


async def contender(task: dict[str, Any]) -> None:
    """Send many requests at once at each of the given times; the emulator counts the outcomes."""
    async with contextlib.AsyncExitStack() as stack:
        send = await (_ours if task["client"] == "llm_router" else _litellm)(task, stack)
        starts = await wait_for_start()
        began = max(time.time(), starts[0])
        for start in starts:
            await asyncio.sleep(max(start - time.time(), 0.0))
            await asyncio.gather(*(send() for _ in range(task["requests"])))
        report({"began": began, "ended": time.time()})


async def _ours(task: dict[str, Any], stack: contextlib.AsyncExitStack) -> Callable[[], Awaitable[object]]:
    # Imported before the start, as LiteLLM is: the first send would take quota and then import for a second.
    import google.genai  # noqa: F401, PLC0415

    pool = deployments(task["keys"], rpm=task["rpm"], guard=task["guard"])
    provider = GeminiProvider(base_url=task["emulator"])
    router = Router(pool, store=task["store"], provider=provider, max_retries=0)
    if not task["store"].startswith("memory"):
        await router.get_all_key_statuses()  # connects
    stack.push_async_callback(provider.aclose)
    await stack.enter_async_context(router)

    return lambda: router.send(PROMPT, max_wait=task["max_wait"], timeout=60.0)


async def _litellm(
    task: dict[str, Any], _stack: contextlib.AsyncExitStack
) -> Callable[[], Awaitable[object]]:
    from _peers import litellm_router  # noqa: PLC0415 - only this role needs it

    router = litellm_router(
        task["keys"],
        strategy=task["strategy"],
        rpm=task["rpm"],
        tpm=10**9,
        redis_url=task["redis"],
        base_url=task["emulator"],
        checks=task["checks"],
    )
    messages = [{"role": "user", "content": PROMPT}]

    async def send() -> None:
        with contextlib.suppress(Exception):  # whatever it raises when no key has room
            await router.acompletion(model="group", messages=messages)

    return send


# --- sdk.py -------------------------------------------------------------------------------------------


async def emulator(_task: dict[str, Any]) -> None:
    """Run the emulator of the Gemini API until the parent closes the pipe."""
    from llm_router.emulator import GeminiEmulator  # noqa: PLC0415 - only this role needs it

    async with GeminiEmulator() as server:
        report(server.url)
        await asyncio.to_thread(sys.stdin.readline)


# --- gateway.py ---------------------------------------------------------------------------------------


async def gateway(task: dict[str, Any]) -> None:
    """Serve a gateway, or what it is compared with, until the parent closes the pipe."""
    from _served import serve  # noqa: PLC0415 - only this role needs it

    await serve(task["subject"], task["emulator"], report, sys.stdin.readline)


# --- memory.py ----------------------------------------------------------------------------------------


async def sends(task: dict[str, Any]) -> None:
    """Send many times through an instant provider; report the resident memory after each tenth."""
    from llm_router.testing import ScaledClock  # noqa: PLC0415 - only this role needs it

    # A minute passes in two seconds, so that the windows of all quotas, which are bounded, are full after the
    # first tenth. On the machine's clock they would still be filling at the end, which looks like a leak.
    router = Router(deployments(100), provider=Instant(), clock=ScaledClock(30.0))
    await wait_for_start()
    sizes: list[int] = []
    for _ in range(10):
        for number in range(task["sends"] // 10):
            await router.send("hello")
            if number % 16 == 0:  # as every real send does: the loop then discards cancelled timers
                await asyncio.sleep(0)
        sizes.append(resident())
    await router.aclose()
    report(sizes)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource  # noqa: PLC0415 - not on every system

        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    import resource  # noqa: PLC0415 - not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


ROLES = {"sqlite": sqlite, "contender": contender, "emulator": emulator, "gateway": gateway, "sends": sends}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](json.loads(sys.argv[2])))
