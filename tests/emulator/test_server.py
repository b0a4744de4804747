from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import Callable

import aiohttp
import pytest

from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec
from llm_router.testing import ManualClock

MODEL = "gemini-test"
BODY = {"contents": [{"parts": [{"text": "hello"}]}]}


async def generate(http: aiohttp.ClientSession, url: str) -> int:
    async with http.post(f"{url}/v1beta/models/{MODEL}:generateContent?key=k", json=BODY) as response:
        await response.read()
        return response.status


async def send_half_a_request(emulator: GeminiEmulator) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tasks = len(asyncio.all_tasks())
    reader, writer = await asyncio.open_connection("127.0.0.1", int(emulator.url.rpartition(":")[2]))
    path = f"/v1/models/{MODEL}:generateContent?key=k"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{".encode())
    await until(lambda: len(asyncio.all_tasks()) > tasks)  # the emulator reads it
    return reader, writer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a socket
            await asyncio.sleep(0)


@pytest.mark.slow
async def test_nothing_is_left_behind(http: aiohttp.ClientSession) -> None:
    """After stopping, no task, listener or connection is left, even with hanging requests."""
    gc.collect()  # early versions of the SDK start tasks here, to close the clients of other tests
    await until(lambda: len(asyncio.all_tasks()) == 1)
    before = asyncio.all_tasks()
    async with GeminiEmulator() as emulator:
        url = emulator.url
        assert await generate(http, url) == 200
        emulator.inject(Fault.hang())
        hanging = asyncio.create_task(generate(http, url))
        await until(lambda: emulator.holding)
    with pytest.raises(aiohttp.ClientError):
        await hanging
    gc.collect()
    assert asyncio.all_tasks() == before
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


async def test_url_needs_a_running_server() -> None:
    """Before it starts and after it stops, the URL is an error that says what to do."""
    emulator = GeminiEmulator()
    with pytest.raises(RuntimeError, match="use it in 'async with'"):
        emulator.url  # noqa: B018
    async with emulator:
        assert emulator.url.startswith("http://127.0.0.1:")
        assert emulator.url in repr(emulator)
        with pytest.raises(RuntimeError, match="is already running"):
            await emulator.__aenter__()
    assert "stopped" in repr(emulator)


async def test_counters_survive_a_restart_on_the_same_port(http: aiohttp.ClientSession) -> None:
    """An emulator can stop and start again on its port, like a provider that was unavailable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    emulator = GeminiEmulator(port=port)
    for round_ in (1, 2):
        async with emulator:
            assert await generate(http, f"http://127.0.0.1:{port}") == 200
            assert emulator.accepted == round_


async def test_a_taken_port_is_an_error() -> None:
    """A port in use is an OSError, in the loop and in a thread."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        emulator = GeminiEmulator(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await emulator.__aenter__()
        with pytest.raises(OSError, match="in use"), emulator.run_in_thread():
            pytest.fail("it must not run")


async def test_serve_until_cancelled(http: aiohttp.ClientSession) -> None:
    """``serve`` reports its URL, serves, and stops cleanly when it is cancelled."""
    emulator = GeminiEmulator()
    urls: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(emulator.serve("127.0.0.1", 0, started=urls.put_nowait))
    assert await generate(http, await urls.get()) == 200
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "stopped" in repr(emulator)


async def test_run_in_thread(http: aiohttp.ClientSession) -> None:
    """In a thread it answers while the caller's loop is blocked, and takes the same calls."""
    threads = threading.active_count()
    with GeminiEmulator(default_quota=QuotaSpec(rpm=2)).run_in_thread() as emulator:
        with socket.create_connection(("127.0.0.1", int(emulator.url.rpartition(":")[2])), 10) as raw:
            raw.sendall(b"GET /v1/models?key=k HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.recv(15) == b"HTTP/1.1 200 OK"
        rule = emulator.inject(Fault.hang(), times=1)
        hanging = asyncio.create_task(generate(http, emulator.url))
        await until(lambda: emulator.holding)
        emulator.release()
        statuses = [await hanging] + [await generate(http, emulator.url) for _ in range(2)]
        assert statuses == [200, 200, 429]
        assert (emulator.accepted, emulator.refused, rule.taken) == (2, 1, 1)
    assert threading.active_count() == threads


async def test_a_delay_in_a_thread_follows_the_callers_clock(
    http: aiohttp.ClientSession, clock: ManualClock
) -> None:
    """A clock moved by the caller resumes a delayed request in the emulator's thread."""
    with GeminiEmulator(clock=clock).run_in_thread() as emulator:
        emulator.inject(Fault.delay(5))
        delayed = asyncio.create_task(generate(http, emulator.url))
        await until(lambda: clock.pending)
        clock.shift(5)
        async with asyncio.timeout(10):
            assert await delayed == 200


async def test_the_connection_is_kept_alive(http: aiohttp.ClientSession) -> None:
    """The requests of one client share one connection, including refused ones."""
    async with GeminiEmulator(default_quota=QuotaSpec(rpm=3)) as emulator:
        for _ in range(6):
            await generate(http, emulator.url)
        assert http.connector is not None
        connections = sum(len(kept) for kept in http.connector._conns.values())
        assert connections == len(emulator._connections._transports) == 1


async def test_large_bodies(http: aiohttp.ClientSession) -> None:
    """A prompt of a megabyte arrives completely."""
    async with GeminiEmulator() as emulator:
        body = {"contents": [{"parts": [{"text": "x" * 1_000_000}]}]}
        url = f"{emulator.url}/v1/models/{MODEL}:generateContent?key=k"
        async with http.post(url, json=body) as response:
            usage = (await response.json())["usageMetadata"]
    assert usage["promptTokenCount"] == 250_000


async def test_a_client_that_leaves_within_its_request_is_not_counted() -> None:
    """A request whose body never arrives completely is not counted."""
    async with GeminiEmulator() as emulator:
        _, writer = await send_half_a_request(emulator)
        writer.close()
        await writer.wait_closed()
        await until(lambda: not emulator._connections._transports)
        assert (emulator.requests, emulator.accepted) == (0, 0)


async def test_half_a_request_does_not_block_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    """A client that never sends the rest of its request is dropped when the emulator stops."""
    async with GeminiEmulator() as emulator:
        reader, writer = await send_half_a_request(emulator)
    async with asyncio.timeout(10):
        gone = (await asyncio.gather(reader.read(), return_exceptions=True))[0]
    assert gone == b"" or isinstance(gone, ConnectionError)
    assert emulator.requests == 0
    writer.close()
    assert not caplog.records


async def test_a_responder_that_raises_is_logged(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a responder is a 500 for the client, with its traceback in the log."""
    async with GeminiEmulator(responder=lambda model, body: body["nothing"]) as emulator:
        assert await generate(http, emulator.url) == 500
    assert "KeyError: 'nothing'" in caplog.text
