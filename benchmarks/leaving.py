"""Leaving: streams that are opened and left at random moments. What remains of them?

``python benchmarks/leaving.py`` leaves 10,000 through the gateway and as many through the drop-in client,
before the answer has begun, inside it, or at its end, and prints what there is before and afterwards: tasks,
calls under way, reservations, sockets, threads and resident memory. It ends with 1 if anything remains.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from _child import resident

from llm_router import Deployment, Key, Metric, Quota, Refill, Router, Secret
from llm_router.emulator import Fault, GeminiEmulator

__all__ = ["SUBJECTS", "Count", "Outcome", "leave", "main"]

_KEYS = {f"emulated-{number}": f"key-{number}" for number in range(4)}
_MODELS = {"flash": None, "pausing": Fault.stream_hang(), "silent": Fault.hang()}
_WEIGHTS = (2, 1, 1)
_LONGEST = 3.0
"""After how many times what a stream takes it is left at the latest."""

_SETTLING = 10.0
"""Seconds after which what still is there remains."""

_PROMPT = "one two three four"


@attrs.frozen
class Count:
    """What there is at a moment.

    Attributes:
        tasks: Tasks of the event loops.
        calls: Calls under way: in the gateway, or in the client.
        holding: Requests that hang at the API.
        reservations: Quotas that are reserved.
        sockets: Open sockets, those of connections that wait to be used again included; 0 if not known.
        threads: Threads.
        memory: Resident bytes.
    """

    tasks: int
    calls: int
    holding: int
    reservations: int
    sockets: int
    threads: int
    memory: int


@attrs.frozen
class Outcome:
    """What came of leaving streams.

    Attributes:
        subject: Through what.
        streams: How many were opened.
        seconds: How long it took.
        before: What there was when a few had been left already.
        after: What there was when all of them had been left.
        end: What there was when all was closed, less what there had been before it was opened.
        counted: Requests that the router counts.
        accepted: Requests that arrived at the API.
        begun: Streams that were left after at least one piece.
    """

    subject: str
    streams: int
    seconds: float
    before: Count
    after: Count
    end: Count
    counted: int
    accepted: int
    begun: int

    @property
    def remains(self) -> list[str]:
        """What remains of them that should not, in words."""
        found = [
            f"{name}: {getattr(self.after, name)}"
            for name in ("calls", "holding", "reservations")
            if getattr(self.after, name)
        ]
        found += [
            f"{name}: {getattr(self.end, name)} after all was closed"
            for name in ("tasks", "sockets", "threads")
            if getattr(self.end, name) > 0
        ]
        if self.after.tasks > self.before.tasks:
            found.append(f"tasks: {self.after.tasks} instead of {self.before.tasks}")
        if not self.accepted <= self.counted <= self.streams:
            found.append(f"{self.counted} are counted of {self.accepted} that arrived")
        return found

    def __str__(self) -> str:
        rows = [f"{self.subject}: {self.streams:,} streams opened and left, in {self.seconds:.0f} s"]
        for name, value in attrs.asdict(self.before).items():
            scale = 1 << 20 if name == "memory" else 1
            values = [each / scale for each in (value, getattr(self.after, name), getattr(self.end, name))]
            unit = " MiB" if scale > 1 else ""
            rows.append(f"  {name:<13}" + " ".join(f"{each:>9,.{scale > 1:d}f}{unit}" for each in values))
        rows.append(
            f"  {self.counted:,} counted, {self.accepted:,} arrived, {self.begun:,} had begun to be answered"
        )
        rows.append(f"  remains: {', '.join(self.remains) or 'nothing'}")
        return "\n".join(rows)


@attrs.frozen
class _Subject:
    """What streams go through.

    Attributes:
        router: The router behind it.
        stream: Opens a stream of a model.
        calls: Returns how many calls are under way.
        ask: Awaits what is asked of the router, where that works.
        loops: The event loops besides the one that all this runs on.
    """

    router: Router
    stream: Callable[[str], AsyncGenerator[object]]
    calls: Callable[[], int]
    ask: Callable[[Any], Any]
    loops: Callable[[], Sequence[asyncio.AbstractEventLoop]] = tuple


async def leave(subject: str, streams: int, *, seed: int = 1, in_flight: int = 16) -> Outcome:
    """Leave so many streams of one of the :data:`SUBJECTS`, some at a time."""
    chance = random.Random(seed)
    emulator = GeminiEmulator(keys=_KEYS, models=_MODELS, log_size=100)
    for model, fault in _MODELS.items():
        if fault is not None:
            emulator.inject(fault, model=model)
    with emulator.run_in_thread():
        opened = _count(emulator, None)
        async with SUBJECTS[subject](emulator.url) as found:
            longest = _LONGEST * await _usual_time(found, in_flight)
            early = max(in_flight, streams // 10)
            begun = await _leave_all(found, early, chance, in_flight, longest)
            before = await _settled(emulator, found)
            began = time.perf_counter()
            begun += await _leave_all(found, streams - early, chance, in_flight, longest)
            seconds = time.perf_counter() - began
            after = await _settled(emulator, found)
            statuses = await found.ask(found.router.get_all_key_statuses())
            counted = sum(int(each["rpd_usage"].partition("/")[0]) for each in statuses)
        await asyncio.get_running_loop().shutdown_default_executor()
        end = await _until(lambda: _less(_count(emulator, None), opened), lambda it: it.sockets <= 0)
        return Outcome(
            subject, streams + in_flight + 1, seconds, before, after, end, counted, emulator.accepted, begun
        )


async def _usual_time(found: _Subject, in_flight: int) -> float:
    """Return how many seconds a stream takes that is read to its end, among others."""

    async def read() -> float:
        began = time.perf_counter()
        async for _ in found.stream("flash"):
            pass
        return time.perf_counter() - began

    await read()  # the first one imports what is slow to import
    return statistics.mean(await asyncio.gather(*(read() for _ in range(in_flight))))


async def _leave_all(
    found: _Subject, streams: int, chance: random.Random, in_flight: int, longest: float
) -> int:
    """Leave so many streams; return how many of them had begun to be answered."""
    left = iter(range(streams))

    async def work() -> int:
        return sum([await _leave(found, chance, longest) for _ in left])

    return sum(await asyncio.gather(*(work() for _ in range(in_flight))))


async def _leave(found: _Subject, chance: random.Random, longest: float) -> bool:
    """Open a stream, and leave it after some time or pieces, or read it; return whether it had begun."""
    (model,) = chance.choices(list(_MODELS), _WEIGHTS)
    most, read = chance.choice((1, 2, 1000)), 0
    with suppress(TimeoutError):
        async with asyncio.timeout(chance.uniform(0, longest)):
            async for _ in found.stream(model):
                read += 1
                if read == most:
                    break  # as users do, who close nothing
    return read > 0


def _count(emulator: GeminiEmulator, found: _Subject | None) -> Count:
    gc.collect()
    store: Any = None if found is None else found.router.keys.store
    loops = () if found is None else found.loops()
    return Count(
        tasks=len(asyncio.all_tasks()) + sum(len(asyncio.all_tasks(loop)) for loop in loops),
        calls=0 if found is None else found.calls(),
        holding=emulator.holding,
        reservations=0 if store is None else len(store._reservations),  # noqa: SLF001 - there is no other way
        sockets=_sockets(),
        threads=threading.active_count(),
        memory=resident(),
    )


def _less(count: Count, other: Count) -> Count:
    return Count(*(mine - its for mine, its in zip(attrs.astuple(count), attrs.astuple(other), strict=True)))


async def _settled(emulator: GeminiEmulator, found: _Subject) -> Count:
    """Return what there is when nothing is under way any more, or when that takes too long."""
    return await _until(
        lambda: _count(emulator, found), lambda it: not (it.calls or it.holding or it.reservations)
    )


async def _until(count: Callable[[], Count], is_enough: Callable[[Count], bool]) -> Count:
    give_up = time.monotonic() + _SETTLING
    while not is_enough(found := count()) and time.monotonic() < give_up:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)  # what is waited for happens in several threads, and at the API
    return found


def _sockets() -> int:
    folder = Path("/proc/self/fd")
    found = 0
    for each in folder.iterdir() if folder.exists() else ():
        with suppress(OSError):  # the one of the folder itself
            found += str(each.readlink()).startswith("socket:")
    return found


def _router(url: str) -> Router:
    quotas = Quota(Metric.RPM, 10**6), Quota(Metric.TPM, 10**9), Quota(Metric.RPD, 10**6, Refill.DAILY)
    pool = [
        Deployment(Key(project, Secret(secret)), model, "light", quotas=quotas)
        for secret, project in _KEYS.items()
        for model in _MODELS
    ]
    return Router(pool, base_url=url)


@asynccontextmanager
async def _gateway(url: str) -> AsyncIterator[_Subject]:
    import aiohttp  # noqa: PLC0415 - an extra
    import uvicorn  # noqa: PLC0415 - an extra

    from llm_router.gateway import Gateway  # noqa: PLC0415 - an extra
    from llm_router.gateway.server import listen, server_config  # noqa: PLC0415 - an extra

    router, listener = _router(url), listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(Gateway(router)))
    serving = asyncio.create_task(server.serve([listener]))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}/v1beta/models"
    body = {"contents": [{"parts": [{"text": _PROMPT}]}]}

    async def stream(model: str) -> AsyncGenerator[object]:
        path = f"{base}/{model}:streamGenerateContent?alt=sse"
        async with session.post(path, json=body) as answer:
            async for piece in answer.content.iter_any():
                yield piece

    async def ask(work: Any) -> Any:
        return await work

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield _Subject(router, stream, lambda: len(server.server_state.connections), ask)
    server.should_exit = True
    await serving
    listener.close()


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[_Subject]:
    from llm_router.genai import Client  # noqa: PLC0415 - the SDK is slow to import

    client = Client(router=partial(_router, url))
    bridge = client._bridge  # noqa: SLF001 - nothing else tells what is under way

    async def stream(model: str) -> AsyncGenerator[object]:
        async for piece in await client.aio.models.generate_content_stream(model=model, contents=_PROMPT):
            yield piece

    async def ask(work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, bridge.home().loop))

    yield _Subject(bridge.router, stream, lambda: bridge.home().under_way, ask, lambda: [bridge.home().loop])
    await asyncio.to_thread(client.close)


SUBJECTS: Mapping[str, Callable[[str], AbstractAsyncContextManager[_Subject]]] = {
    "gateway": _gateway,
    "client": _client,
}
"""What streams can go through."""


def main(arguments: list[str] | None = None) -> int:
    """Leave streams as the command line says."""
    parser = argparse.ArgumentParser(description="Leave streams at random moments, and see what remains.")
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; default: all"
    )
    parser.add_argument("--streams", type=int, default=10_000, help="through each (%(default)s)")
    parser.add_argument("--in-flight", type=int, default=16, help="at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (%(default)s)")
    options = parser.parse_args(arguments)
    print(f"{'':15} {'before':>9} {'after':>9} {'closed':>9}", flush=True)
    outcomes = []
    for name in options.subjects or SUBJECTS:
        outcome = asyncio.run(leave(name, options.streams, seed=options.seed, in_flight=options.in_flight))
        print(outcome, flush=True)
        outcomes.append(outcome)
    return int(any(outcome.remains for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
