"""A process that uses a store: ``child.py SCENARIO PATH ...`` reports on its standard output."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from llm_router import Deployment, Key, Metric, Quota, Secret
from llm_router.domain.quota import Demand
from llm_router.errors import StoreError
from llm_router.stores.base import Taking
from llm_router.stores.sqlite import SQLiteStore


def deployments(keys: int, rpm: int, tpm: int) -> list[Deployment]:
    """Make the same deployments in every process."""
    quotas = Quota(Metric.RPM, rpm), Quota(Metric.TPM, tpm)
    return [Deployment(Key(f"key-{n}", Secret(f"secret-{n}")), "model", quotas=quotas) for n in range(keys)]


async def take(store: SQLiteStore, pool: list[Deployment], tokens: int) -> int:
    """Reserve from the first with room, eight at a time; return the tokens granted."""
    for shortlist in (pool[n : n + 8] for n in range(0, len(pool), 8)):
        decision = await store.reserve(f"{os.getpid()}-{next(_NUMBERS)}", shortlist, Demand(1, tokens), 600.0)
        if decision.deployment is not None:
            return tokens
    return 0


_NUMBERS = itertools.count()


async def hammer(path: Path, keys: int, rpm: int, tpm: int, calls: int) -> None:
    """Reserve ``calls`` requests of mixed size at once; print how many were granted, and their tokens."""
    store = SQLiteStore(path)
    pool = deployments(int(keys), int(rpm), int(tpm))
    print("ready", flush=True)
    sys.stdin.readline()
    sizes = random.Random(os.getpid()).choices(range(1, 60), k=int(calls))
    granted = await asyncio.gather(*(take(store, pool, size) for size in sizes))
    await store.aclose()
    print(sum(map(bool, granted)), sum(granted), flush=True)


async def endless(path: Path, rpm: int) -> None:
    """Reserve until killed; print a line for each grant."""
    store = SQLiteStore(path)
    [only] = deployments(1, int(rpm), 10**9)
    while True:
        for granted in await asyncio.gather(*(take(store, [only], 1) for _ in range(5))):
            print(granted, flush=True)


async def careful(path: Path, rpm: int) -> None:
    """Take until the quota is spent, and charge what the file has lost; print how many were granted."""
    store = SQLiteStore(path)
    [only] = deployments(1, int(rpm), 10**9)
    takings: list[Taking] = []
    since, charges, refused = 0.0, 0, 0
    print("ready", flush=True)
    sys.stdin.readline()
    while refused < 20:
        decision = await store.reserve(f"{os.getpid()}-{next(_NUMBERS)}", [only], Demand(), 600.0)
        if decision.deployment is not None:
            takings.append(Taking(time.time(), Demand()))
            since = store.known[only.model_scope] = decision.since
        elif decision.lost:
            charges += 1
            since = await store.charge(str(os.getpid()), charges, only, [], takings, since)
            store.known[only.model_scope] = since
        refused += bool(decision.refusals) and decision.refusals[0].reason == "rpm"
        await asyncio.sleep(0.005)
    await store.aclose()
    print(len(takings), charges, flush=True)


async def _take_some(store: SQLiteStore, count: int) -> int:
    return sum(await asyncio.gather(*(take(store, deployments(1, 10**6, 10**6), 1) for _ in range(count))))


def fork(path: Path) -> None:
    """Use one store before a fork and in both processes; print how much is used in the end."""
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)  # "multi-threaded"
    store = SQLiteStore(path)

    async def busy() -> None:
        traffic = asyncio.create_task(_take_some(store, 50))
        await asyncio.sleep(0)
        child = os.fork()
        if not child:
            os._exit(_in_child(store))
        await traffic
        await _take_some(store, 10)
        await asyncio.to_thread(_wait_for, child)

    async def count() -> int:
        [snapshot] = await store.snapshot(deployments(1, 10**6, 10**6))
        await store.aclose()
        return snapshot.quotas[0].used

    for _ in range(3):
        asyncio.run(busy())
    print(asyncio.run(count()), flush=True)


def _in_child(store: SQLiteStore) -> int:
    async def both() -> None:
        await _take_some(store, 7)
        await store.aclose()

    # The parent's loop is still marked as running in this thread.
    asyncio.events._set_running_loop(None)
    asyncio.run(both())
    return 0


def _wait_for(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with {status}"


async def readonly(path: Path) -> None:
    """Try to use a file that this process may only read; print the error."""
    if os.getuid() == 0:
        os.setuid(65534)
    store = SQLiteStore(path)
    try:
        await _take_some(store, 1)
    except StoreError as error:
        print(type(error).__name__, str(error), flush=True)
    await store.aclose()


async def leave_open(path: Path) -> None:
    """End without closing the store."""
    await _take_some(SQLiteStore(Path(path)), 3)
    print("done", flush=True)


async def hold(path: Path) -> None:
    """Take three, keep the file open until told to go on, and print whether a loss is reported then."""
    store = SQLiteStore(Path(path))
    [only] = deployments(1, 100, 10**9)
    for _ in range(3):
        decision = await store.reserve(f"{os.getpid()}-{next(_NUMBERS)}", [only], Demand(), 600.0)
    store.known[only.model_scope] = decision.since
    print("holding", flush=True)
    sys.stdin.readline()
    decision = await store.reserve(f"{os.getpid()}-{next(_NUMBERS)}", [only], Demand(), 600.0)
    await store.aclose()
    print(len(decision.lost), flush=True)


SCENARIOS: dict[str, Callable[..., Coroutine[Any, Any, None] | None]] = {
    "careful": careful,
    "endless": endless,
    "fork": fork,
    "hammer": hammer,
    "hold": hold,
    "leave-open": leave_open,
    "readonly": readonly,
}

if __name__ == "__main__":
    outcome = SCENARIOS[sys.argv[1]](*sys.argv[2:])
    if outcome is not None:
        asyncio.run(outcome)
