"""Processes that spend one quota until their standard input ends: started by events.py.

``spender.py FILE`` reads the tasks, imports the library once and forks a process for each task. Each appends
a byte to its task's ``ready`` when it can start, and the time of every request that reaches its provider to
``sent``: the machine's monotonic clock, which all processes share, as a double.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from llm_router import (
    Deployment,
    Key,
    Metric,
    Quota,
    RateLimitStore,
    Refill,
    Reply,
    Request,
    Response,
    Router,
    Secret,
)
from llm_router.stores.redis import RedisStore
from llm_router.stores.sqlite import SQLiteStore

PER_DAY = 100_000


def note(path: str, data: bytes) -> None:
    """Append a few bytes to a file of all processes."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, data)
    os.close(file)


class CountingProvider:
    """Records when a request reaches it, and answers at once."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        note(self._path, struct.pack("d", time.monotonic()))
        dispatched()
        return Reply("ok", model=deployment.model)

    def validate(self, request: Request) -> None:
        pass

    def estimate_tokens(self, request: Request) -> int:
        return 1

    async def aclose(self) -> None:
        pass


def deployment(task: dict[str, Any]) -> Deployment:
    quotas = (
        Quota(Metric.RPM, task["limit"], window=task["window"], guard=task["guard"]),
        Quota(Metric.RPD, PER_DAY, Refill.DAILY),
    )
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", "light", quotas=quotas)


def store_of(task: dict[str, Any]) -> RateLimitStore:
    if "path" in task:
        return SQLiteStore(task["path"])
    return RedisStore(task["url"], namespace=task["namespace"], timeout=task["timeout"])


async def spend(task: dict[str, Any]) -> None:
    """Send now and then, whether or not what was sent before has been answered.

    In the first window the group asks for no more than its limit, so that what comes back is spread out; from
    then on for more than there is.
    """
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    provider = CountingProvider(task["sent"])
    sending: set[asyncio.Task[Response]] = set()
    async with (
        aclosing(store_of(task)) as store,
        Router([deployment(task)], store=store, provider=provider, on_store_failure=task["policy"]) as router,
    ):
        await router.health_check()  # connects
        note(task["ready"], b".")
        began = time.monotonic()
        while not over.is_set():
            is_early = time.monotonic() - began < task["window"]
            await asyncio.sleep(random.uniform(0.5, 1.5) / task["first_rate" if is_early else "rate"])
            send = asyncio.create_task(router.send("x", timeout=60.0))
            sending.add(send)
            send.add_done_callback(sending.discard)
        await asyncio.gather(*sending)


def main() -> None:
    """Fork a process for each task, and wait for all of them; fail if one has failed."""
    children = []
    for task in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        child = os.fork()
        if child == 0:
            random.seed()
            asyncio.run(spend(task))
            return
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
