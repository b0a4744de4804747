"""Whatever a caller leaves behind is ended: streams, clients, processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator, QuotaSpec
from llm_router.genai import Client

UntilIdle = Callable[[Client], Coroutine[Any, Any, None]]
UntilHolding = Callable[..., Coroutine[Any, Any, None]]
PROMPT: Any = {"model": "flash", "contents": "one two three four"}


def _threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "llm_router"]


@pytest.fixture
def wide_client(emulator: GeminiEmulator) -> Client:
    """Provide a client of one key without a limit at the server."""
    emulator.set_quota("flash", QuotaSpec(rpm=10_000), project="alpha")
    key = Key("wide", Secret("AIzaOfAlpha"))
    quotas = (Quota(Metric.RPM, 10_000), Quota(Metric.TPM, 10_000_000))
    return Client(router=lambda: Router([Deployment(key, "flash", quotas=quotas)], base_url=emulator.url))


async def _leave(client: Client, way: int) -> None:
    """Open a stream and leave it: by break, cancelled, closed, dropped, unread; or read it."""
    stream: Any = await client.aio.models.generate_content_stream(**PROMPT)
    match way:
        case 0:
            async for _ in stream:
                break
        case 1:
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        case 2:
            await anext(stream)
            await stream.aclose()
        case 3:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.random() / 500):
                    async for _ in stream:
                        pass
        case 4:
            pass
        case _:
            assert [piece async for piece in stream]


def _leave_blocking(client: Client, way: int) -> None:
    stream: Any = client.models.generate_content_stream(**PROMPT)
    if way % 3 == 0:
        next(iter(stream))
    elif way % 3 == 1:
        next(iter(stream))
        stream.close()
    else:
        assert list(stream)


@pytest.mark.slow
async def test_streams_that_are_left(
    wide_client: Client, emulator: GeminiEmulator, until_idle: UntilIdle
) -> None:
    """Some hundred of them, left in every way, leave no task, no reservation and no connection."""
    client = wide_client
    for number in range(50):
        async with asyncio.TaskGroup() as group:
            for way in range(6):
                group.create_task(_leave(client, way))
            group.create_task(asyncio.to_thread(_leave_blocking, client, number))
    gc.collect()
    await until_idle(client)
    store = client._bridge.router.keys.store
    assert store._reservations == {}  # type: ignore[attr-defined]
    status = (await _on_its_loop(client, client._bridge.router.get_all_key_statuses()))[0]
    used = int(status["rpm_usage"].partition("/")[0])
    assert emulator.accepted <= used <= 350  # what was cancelled on its way may have been sent
    client.close()
    assert _threads() == []
    async with asyncio.timeout(5):
        while emulator._connections._transports:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def _on_its_loop(client: Client, work: Coroutine[Any, Any, Any]) -> Any:
    loop = client._bridge.home().loop
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


@pytest.mark.slow
def test_a_client_that_is_dropped(make_router: Callable[..., Router]) -> None:
    """Its thread ends with it, and not while something of it is in use."""
    client = Client(router=make_router)
    models = client.models
    assert models.generate_content(**PROMPT).text
    (thread,) = _threads()
    del client
    gc.collect()
    assert models.generate_content(**PROMPT).text
    del models
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("blocking", [False, True])
async def test_a_stream_that_is_dropped(sliced: Client, until_idle: UntilIdle, *, blocking: bool) -> None:
    """Although much of it is still to come, its call ends when the garbage collector has been there."""
    stream: Any
    if blocking:
        stream = sliced.models.generate_content_stream(**PROMPT)
        await asyncio.to_thread(next, stream)
    else:
        stream = await sliced.aio.models.generate_content_stream(**PROMPT)
        await anext(stream)
    home = sliced._bridge.home()
    assert home.under_way == 1
    del stream
    for _ in range(3):  # the loop closes the SDK's generators one by one, and what holds them is a cycle
        await asyncio.sleep(0.01)
        gc.collect()
    await until_idle(sliced)


def _open_answer(client: Client) -> Any:
    """Return an answer as the SDK's HTTP client has it, of which nothing was read."""
    http: Any = client._api_client._httpx_client
    url = "https://any.host/v1beta/models/flash:streamGenerateContent?alt=sse"
    asked = http.build_request("POST", url, json={"contents": [{"parts": [{"text": "hi"}]}]})
    return http.send(asked, stream=True)


@pytest.mark.slow
async def test_an_answer_that_is_dropped(sliced: Client, until_idle: UntilIdle) -> None:
    """Its call ends although nobody closed it."""
    answer = _open_answer(sliced)
    home = sliced._bridge.home()
    assert home.under_way == 1
    del answer
    gc.collect()
    await until_idle(sliced)


@pytest.mark.slow
def test_an_answer_outlives_its_client(make_router: Callable[..., Router], sliced: Client) -> None:
    """Whoever has one can read it to its end."""
    answer = _open_answer(Client(router=make_router))
    gc.collect()
    assert b"finishReason" in answer.read()


async def test_a_loop_that_ends_with_a_stream_open(client: Client, until_idle: UntilIdle) -> None:
    """The stream is ended with it."""
    left: list[Any] = []

    async def leave() -> None:
        left.append(await client.aio.models.generate_content_stream(**PROMPT))
        await anext(left[0])

    await asyncio.to_thread(asyncio.run, leave())
    await until_idle(client)


FORKING = """
import atexit, functools, os, sys, warnings
say = "print('closed:', owning._bridge.router.closed, given._bridge.router.closed)"
atexit.register(exec, say, globals())
from llm_router.genai import Client
from llm_router import Deployment, Key, Router, Secret
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
pool = [Deployment(Key("alpha", Secret("AIzaOfAlpha")), "flash")]
make = functools.partial(Router, pool, base_url=sys.argv[1])
owning, given = Client(router=make), Client(router=make())
prompt = {"model": "flash", "contents": "hi"}
for client in (owning, given): print(client.models.generate_content(**prompt).text, flush=True)
child = os.fork()
if not child:
    print(owning.models.generate_content(**prompt).text, flush=True)
    try: given.models.generate_content(**prompt)
    except RuntimeError as error: print("child:", error, flush=True)
    owning.close()
    sys.exit(0)
print("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
for client in (owning, given): print(client.models.generate_content(**prompt).text, flush=True)
# No function is defined here: with one, Python 3.13 dies of any httpx stream that is open at the end.
stream = owning.models.generate_content_stream(model="flash", contents="one two three")
next(stream)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forks_and_the_end_of_the_interpreter(emulator: GeminiEmulator) -> None:
    """A child makes its own router or says why it cannot, and a stream that is open keeps nobody alive."""
    arguments = [sys.executable, "-W", "error", "-c", FORKING, emulator.url]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    answer = "[flash] echo: hi"
    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines.pop(3).startswith("child: this client came by a fork")
    child = [answer, "closed: True False", "child ended with 0"]
    assert lines == [answer, answer, *child, answer, answer, "closed: True False"]
