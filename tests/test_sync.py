"""The router for callers without an event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from llm_router import InvalidRequestError, Metric, Router, RouterClosedError, RouterLoopError, SendError
from llm_router.conversations.conversation import Conversation
from llm_router.engine.keys import KeyManager
from llm_router.engine.streaming import Stream
from llm_router.sync import SyncConversation, SyncKeys, SyncRouter, SyncStream
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from tests.conftest import Pools

NOT_BLOCKING = {"relay", "loop", "aclose", "from_settings"}
"""What a caller without an event loop does not need: exchanges are for transports."""


@pytest.fixture
def fake() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def router(pools: Pools, fake: FakeProvider) -> Iterator[SyncRouter]:
    deployments = [pools.one(key_id="a", rpm=1_000), pools.one(key_id="b", rpm=1_000)]
    with SyncRouter(lambda: Router(deployments, provider=fake)) as made:
        yield made


def _calls(router: SyncRouter) -> int:
    return router._bridge.home().under_way


def _public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("blocking", "other", "missing"),
    [
        (SyncRouter, Router, NOT_BLOCKING),
        (SyncStream, Stream, set()),
        (SyncConversation, Conversation, set()),
    ],
)
def test_it_has_the_methods_of_the_asynchronous_one(blocking: type, other: type, missing: set[str]) -> None:
    """With the same arguments; what is new in one is missing in the other until somebody adds it."""
    assert _public(other) - missing - _public(blocking) == set()
    assert _public(blocking) - _public(other) <= {"batch", "keys", "close"}
    for name in _public(other) & _public(blocking):
        found, wanted = getattr(blocking, name), getattr(other, name)
        if inspect.isfunction(wanted) or inspect.ismethod(wanted):
            assert list(inspect.signature(found).parameters.values()) == list(
                inspect.signature(wanted).parameters.values()
            ), name


def test_its_keys_have_the_methods_of_the_key_manager() -> None:
    """Those that change something or look at one key."""
    for name in _public(SyncKeys):
        wanted = inspect.signature(getattr(KeyManager, name)).parameters
        assert list(inspect.signature(getattr(SyncKeys, name)).parameters.values()) == list(wanted.values())
    assert {"lift", "disable", "enable", "forget_limits"} <= _public(SyncKeys)


def test_a_script(router: SyncRouter, fake: FakeProvider) -> None:
    """Each kind of call returns what the asynchronous one does."""
    fake.script("one", ["two ", "three"], "four", "five")
    assert router.send("x", workload="light").text == "one"
    with router.stream("x") as stream:
        assert [chunk.text for chunk in stream] == ["two ", "three"]
    assert stream.response.text == "two three"
    conversation = router.conversation("c", workload="light")
    assert conversation.send("hello").text == "four"
    assert conversation.stream("and?").collect().text == "five"
    assert len(conversation.history()) == 4
    conversation.clear()
    assert conversation.history() == ()
    assert router.explain("x").tiers
    assert router.health_check()["state"] == "healthy"
    assert [row["key_id"] for row in router.get_all_key_statuses()] == ["a", "b"]
    assert router.keys.disable("a")[0]["disabled"]
    assert not router.keys.enable("a")[0]["disabled"]
    assert router.cache_savings() == {"requests": 0, "tokens": 0}
    assert "AIza" not in repr(router)


def test_a_batch_is_in_order(router: SyncRouter, fake: FakeProvider) -> None:
    """Whatever comes first; a failure is a response, and a wrong argument ends the batch."""
    fake.script(lambda _, request: str(request.contents).upper(), times=5)
    assert [each.text for each in router.batch("abcde", concurrency=2)] == list("ABCDE")
    assert router.batch([]) == []
    with pytest.raises(InvalidRequestError, match="concurrency must be a whole number above 0, not 0"):
        router.batch("a", concurrency=0)
    with pytest.raises(InvalidRequestError):
        router.batch(["fine", ""])
    assert _ends(lambda: _calls(router) == 0)


def test_errors_are_those_of_the_router(router: SyncRouter, fake: FakeProvider) -> None:
    """They are raised where the caller waits."""
    with pytest.raises(InvalidRequestError):
        router.send("")
    with pytest.raises(TypeError, match="wrkload"):
        router.send("x", wrkload="light")  # type: ignore[call-arg]
    fake.script([SendError("no")], times=4)
    stream = router.stream("x")
    with pytest.raises(SendError, match="no"):
        next(stream)
    stream.close()
    stream.close()


def test_many_threads(router: SyncRouter, fake: FakeProvider) -> None:
    """Each gets its own answer."""
    fake.script(lambda _, request: str(request.contents), times=200)
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(lambda n: router.send(f"{n}").text, range(200))) == [str(n) for n in range(200)]


async def test_a_notebook_whose_loop_runs(router: SyncRouter) -> None:
    """A blocking call is possible there; a router that works on that very loop says why it is not."""
    assert router.send("x").success


async def test_a_router_of_this_loop_would_wait_for_itself(pools: Pools, fake: FakeProvider) -> None:
    """The error names the way out."""
    async with Router([pools.one()], provider=fake) as router:
        await router.send("x")
        with pytest.raises(RouterLoopError, match="would block the event loop"):
            SyncRouter(router).send("x")
        blocking = SyncRouter(router)
        assert (await asyncio.to_thread(blocking.send, "x")).success
        blocking.close()
        assert not router.closed


def _ends(when: Callable[[], bool]) -> bool:
    """Return whether something comes true, at the latest in five seconds."""
    thread = _soon(lambda: None, when)
    thread.join(5)
    return not thread.is_alive()


def _soon(action: Callable[[], object], when: Callable[[], bool]) -> threading.Thread:
    def run() -> None:
        while not when():
            time.sleep(0.001)
        action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_ctrl_c_ends_the_call(router: SyncRouter, fake: FakeProvider) -> None:
    """The quota of a request that was sent is settled, and nothing goes on behind the caller's back."""
    fake.script(asyncio.Event())
    thread = _soon(
        lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT),
        lambda: bool(fake.calls),
    )
    with pytest.raises(KeyboardInterrupt):
        router.send("x")
    thread.join()
    assert _ends(lambda: _calls(router) == 0)
    assert sum(row["limits"][Metric.RPM]["used"] for row in router.get_all_key_statuses()) == 1


def test_closing_ends_what_waits(router: SyncRouter, fake: FakeProvider) -> None:
    """A thread that waits is told so; afterwards nothing can be sent."""
    fake.script(asyncio.Event())
    thread = _soon(router.close, lambda: bool(fake.calls))
    with pytest.raises(RouterClosedError, match="closed before the answer came"):
        router.send("x")
    thread.join()
    assert router.closed
    router.close()
    with pytest.raises(RouterClosedError, match="this router is closed: make a new one"):
        router.send("x")


def test_a_stream_that_is_dropped_is_closed(router: SyncRouter, fake: FakeProvider) -> None:
    """Its call ends, although nothing closed it."""
    fake.script(["one", asyncio.Event(), "two"])
    stream = router.stream("x")
    assert next(stream).text == "one"
    events = stream._stream._events
    del stream
    gc.collect()
    assert _ends(lambda: getattr(events, "ag_frame", 0) is None and _calls(router) == 0)


SCRIPT = """
    import os, sys, warnings
    warnings.simplefilter("error")
    from llm_router import Deployment, Key, Metric, Quota, Router, Secret
    from llm_router.sync import SyncRouter
    from llm_router.testing import FakeProvider

    def make():
        deployment = Deployment(Key("k", Secret("s")), "m", "light", quotas=(Quota(Metric.RPM, 10),))
        return Router([deployment], provider=FakeProvider(), store=f"sqlite:///{sys.argv[1]}")

    router = SyncRouter(make)
    print("parent", router.send("x").text)
    child = os.fork()
    if not child:
        print("child", router.send("x").text, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(router.get_all_key_statuses()[0]["limits"]["rpm"]["used"])
"""


@pytest.mark.slow
def test_forks_and_the_end_of_the_interpreter(tmp_path: pytest.TempPathFactory) -> None:
    """A child has a router of its own on the same quotas; the end without close() is silent."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), f"{tmp_path}/state.db"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["parent", "echo:", "x", "child", "echo:", "x", "2"]
