"""Child processes that start together, work at the same time, and are always reaped."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["FleetError", "child", "run_together"]

_CHILD = Path(__file__).with_name("_child.py")
_GRACE = 5.0


class FleetError(Exception):
    """A child exited early or exceeded its time limit."""


def run_together(
    role: str,
    tasks: Sequence[dict[str, Any]],
    *,
    message: Callable[[], Any] = lambda: "go",
    ready: float = 120.0,
    timeout: float = 120.0,
) -> list[Any]:
    """Run one child per task; start their work when all are ready; return the results in the tasks' order.

    Args:
        role: The program to run; see ``_child.py``.
        tasks: The task of each child.
        message: Called when all are ready; its result is sent to every child and starts its work.
        ready: Seconds that the children may take to get ready, imports included.
        timeout: Seconds that they may work.

    Raises:
        FleetError: A child failed or took too long. No child is left running.
    """
    processes = [_start(role, task) for task in tasks]
    try:
        give_up = time.monotonic() + ready
        for process in processes:
            _read(process, give_up)
        line = json.dumps(message()).encode() + b"\n"
        for process in processes:
            _write(process, line)
        give_up = time.monotonic() + timeout
        return [_read(process, give_up) for process in processes]
    finally:
        _reap(processes)


@contextmanager
def child(role: str, task: dict[str, Any], *, ready: float = 60.0) -> Iterator[Any]:
    """Run one child in the background; yield its first message, and end it afterwards."""
    process = _start(role, task)
    try:
        yield _read(process, time.monotonic() + ready)
    finally:
        _reap([process])


def _start(role: str, task: dict[str, Any]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, str(_CHILD), role, json.dumps(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise FleetError("the child was started without pipes")
    return stream


def _write(process: subprocess.Popen[bytes], line: bytes) -> None:
    stdin = _pipe(process.stdin)
    stdin.write(line)
    stdin.flush()


def _read(process: subprocess.Popen[bytes], give_up: float) -> Any:
    """Return the next value that a child reports; skip whatever else it prints."""
    stdout = _pipe(process.stdout)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            left = give_up - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise FleetError(f"a child did not answer in time: {process.args!r}")
            line = stdout.readline()
            if not line:
                raise FleetError(f"a child exited early, status {process.wait(_GRACE)}: {process.args!r}")
            if line.startswith(b"{"):
                return json.loads(line)["value"]


def _reap(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        for stream in (process.stdin, process.stdout):
            if stream is not None and not stream.closed:
                stream.close()
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_GRACE)
