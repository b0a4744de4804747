"""Running the gateway: uvicorn with bounds on headers and slow clients, in one process or several."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import uvicorn

from llm_router.gateway.hangups import hangups_ignored, means_reload
from llm_router.gateway.protocols import HEAD_BYTES, PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

__all__ = ["listen", "run", "server_config"]

_DRAIN = 30
"""Seconds that running streams have to finish when the server is told to stop."""

_SHORT_LIFE = 10.0
"""Seconds within which a process that dies could not start; another one would not, either."""

_CONNECTIONS = 1000
"""Most connections that wait to be accepted."""


def server_config(app: Any, **more: Any) -> uvicorn.Config:
    """Return how uvicorn serves a gateway: without any log of requests, whose queries may have tokens."""
    settings: dict[str, Any] = {
        "http": list(PROTOCOLS.values())[-1],
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "log_config": None,
        "log_level": "critical",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "backlog": _CONNECTIONS,
        "h11_max_incomplete_event_size": HEAD_BYTES,
        "timeout_graceful_shutdown": _DRAIN,
    }
    return uvicorn.Config(app, **(settings | more))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is a free one.

    Raises:
        OSError: The address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is given; with it, an answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


def run(make: Callable[[], Any], listener: socket.socket, workers: int = 1) -> int:
    """Serve until SIGTERM or SIGINT; then let running calls finish, for half a minute at most.

    SIGHUP goes to every process, unless this one is on a terminal.

    Args:
        make: Makes the application, in each process; it can be pickled.
        listener: Where to listen.
        workers: How many processes serve, each by the name of its place, such as "1 of 3". One that dies is
            replaced, unless it could not even start.

    Returns:
        The exit code: 0, or 1 if the processes could not be kept alive.
    """
    if workers > 1:
        return _supervise(make, listener, workers)
    _work(make, listener)
    return 0


def _work(make: Callable[[], Any], listener: socket.socket) -> None:
    # Uvicorn raises the signal again that has ended it, after all is closed.
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(KeyboardInterrupt, SystemExit), hangups_ignored():
        uvicorn.Server(server_config(make())).run([listener])


def _work_for_parent(make: Callable[[], Any], listener: socket.socket) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - this is a child

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    _work(make, listener)


def _supervise(make: Callable[[], Any], listener: socket.socket, workers: int) -> int:
    context = multiprocessing.get_context("spawn")

    def begin(place: int) -> tuple[BaseProcess, float]:
        name = f"{place + 1} of {workers}"
        process = context.Process(target=_work_for_parent, args=(make, listener), name=name)
        with hangups_ignored():  # which it inherits
            process.start()
        return process, time.monotonic()

    signal.signal(signal.SIGTERM, _leave)
    running: list[tuple[BaseProcess, float]] = []
    if means_reload():
        signal.signal(signal.SIGHUP, lambda number, _: _pass_on(number, running))
    try:
        running.extend(begin(place) for place in range(workers))
        while True:
            multiprocessing.connection.wait([process.sentinel for process, _ in running])
            for place, (process, began) in enumerate(running):
                if process.is_alive():
                    continue
                if time.monotonic() - began < _SHORT_LIFE:
                    return 1
                running[place] = begin(place)
    except (KeyboardInterrupt, SystemExit):
        return 0
    finally:
        _stop([process for process, _ in running])


def _pass_on(number: int, running: list[tuple[BaseProcess, float]]) -> None:
    for process, _ in running:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)


def _stop(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    give_up = time.monotonic() + _DRAIN + 5
    for process in processes:
        process.join(max(give_up - time.monotonic(), 0))
        if process.is_alive():
            process.kill()
            process.join()


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)
