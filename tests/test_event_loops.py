"""Routers and event loops: one router works on one loop at a time, and each loop has a default router."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llm_router.default_router
from llm_router import (
    Deployment,
    LLMRouterError,
    MemoryStore,
    Reply,
    Request,
    Response,
    Router,
    RouterClosedError,
    RouterLoopError,
    get_key_manager,
    get_request_router,
)
from llm_router.stores.failover import FailoverStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

pytestmark = pytest.mark.slow


class OtherLoop:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine there and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def close(self) -> None:
        """End the thread and close the loop."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()


@pytest.fixture
def other() -> Iterator[OtherLoop]:
    """An event loop in another thread."""
    loop = OtherLoop()
    yield loop
    loop.close()


@pytest.fixture
def third() -> Iterator[OtherLoop]:
    """One more."""
    loop = OtherLoop()
    yield loop
    loop.close()


async def collect(stream: Any) -> Any:
    async with stream:
        return await stream.collect()


# --- a router -----------------------------------------------------------------------------------------


def test_a_router_works_on_one_open_loop(pools: Pools, other: OtherLoop, third: OtherLoop) -> None:
    """While its loop is open, a router refuses every other one at once, in every way to use it."""
    provider = FakeProvider()
    router = Router([pools.one()], provider=provider)
    conversation = router.conversation("c")
    assert other.run(router.send("x")).success
    uses = [
        lambda: router.send("x"),
        lambda: router.send("x", timeout=None, max_wait=float("inf")),
        lambda: collect(router.stream("x")),
        lambda: router.send_chat(conv_id="c", prompt="x"),
        lambda: conversation.send("x"),
        lambda: router.explain("x"),
        router.reload,
        router.health_check,
        router.get_all_key_statuses,
        router.cache_savings,
        router.keys.get_all_key_statuses,
        lambda: router.keys.statuses_of("a"),
        router.keys.snapshots,
        router.keys.health,
        router.keys.report,
        lambda: router.keys.lift("a"),
        lambda: router.keys.disable("a"),
        lambda: router.keys.enable("a"),
        lambda: router.keys.forget_limits("a"),
        conversation.history,
        conversation.clear,
        lambda: collect(conversation.stream("x")),
        router.__aenter__,
        router.aclose,
    ]
    for use in uses:
        with pytest.raises(RouterLoopError, match="another event loop, which is still open"):
            third.run(use())
    assert len(provider.calls) == 1
    assert other.run(router.get_all_key_statuses())[0]["rpm_usage"] == "1/15"
    assert other.run(router.send("x")).success


def test_a_loop_that_does_not_run_now_is_open_as_well(pools: Pools, other: OtherLoop) -> None:
    """A loop between two run_until_complete() is in use: what waits on it is not lost."""
    router = Router([pools.one()], provider=FakeProvider())
    first = asyncio.new_event_loop()
    assert first.run_until_complete(router.send("x")).success
    with pytest.raises(RouterLoopError):
        other.run(router.send("x"))
    first.close()
    assert other.run(router.send("x")).success


def test_one_loop_after_another(pools: Pools) -> None:
    """Closed loops do not count: a router works over as many asyncio.run() as there are."""
    router = Router([pools.one(rpm=None)], provider=FakeProvider(), max_requests_per_second=1000)
    before = router.loop
    assert before is None
    for _ in range(5):

        async def burst() -> None:
            assert all(r.success for r in await asyncio.gather(*(router.send("x") for _ in range(9))))
            assert router.loop is asyncio.get_running_loop()

        asyncio.run(burst())
        loop = router.loop
        assert loop is not None
        assert loop.is_closed()


def test_a_closed_router_says_that_first(pools: Pools, other: OtherLoop, third: OtherLoop) -> None:
    """A closed router is closed on every loop, and can be closed again from any."""
    router = Router([pools.one()], provider=FakeProvider())
    other.run(router.send("x"))
    other.run(router.aclose())
    with pytest.raises(RouterClosedError):
        third.run(router.send("x"))
    third.run(router.aclose())


def test_closing_after_its_loop(pools: Pools, other: OtherLoop, third: OtherLoop) -> None:
    """A router whose loop was closed, or that was never used, can be closed on any."""
    unused, used = (Router([pools.one()], provider=FakeProvider()) for _ in range(2))
    third.run(unused.aclose())
    assert other.run(used.send("x")).success
    other.close()
    third.run(used.aclose())
    assert unused.closed
    assert used.closed


def test_queries_work_on_one_open_loop(pools: Pools, other: OtherLoop, third: OtherLoop) -> None:
    """What asks several projects at once raises the same one error."""
    router = Router([pools.one(), pools.one()], base_url="http://127.0.0.1:9")
    other.run(router.health_check())
    for use in (router.models, lambda: router.embed(["x"] * 950), lambda: router.count_tokens("x")):
        with pytest.raises(RouterLoopError, match="another event loop, which is still open"):
            third.run(use())
    other.run(router.aclose())


def test_a_conversation_that_is_busy_on_its_loop(pools: Pools, other: OtherLoop, third: OtherLoop) -> None:
    """Another loop is refused at once, and does not wait for its turn."""
    provider = FakeProvider()
    router = Router([pools.one()], provider=provider)
    conversation = router.conversation("c")

    async def begin() -> Any:
        stream = conversation.stream("x")
        await stream.__aenter__()
        return stream

    async def end(stream: Any) -> None:
        await stream.collect()
        await stream.__aexit__(None, None, None)

    stream = other.run(begin())
    for use in (
        lambda: conversation.send("y"),
        conversation.clear,
        lambda: collect(conversation.stream("y")),
    ):
        with pytest.raises(RouterLoopError):
            third.run(use())
    other.run(end(stream))
    assert len(other.run(conversation.history())) == 2


def test_of_many_threads_one_gets_the_router(pools: Pools) -> None:
    """If several threads use one router at the same time, one is served and the others get an error."""
    router = Router([pools.one(rpm=None)], provider=FakeProvider(), store="memory://")
    together = threading.Barrier(12)

    async def sends() -> list[Response | BaseException]:
        together.wait(10)
        outcomes = await asyncio.gather(*(router.send("x") for _ in range(10)), return_exceptions=True)
        await asyncio.to_thread(together.wait, 10)  # no loop is closed before all have tried
        return outcomes

    with ThreadPoolExecutor(12) as threads:
        everything = [
            future.result(20) for future in [threads.submit(asyncio.run, sends()) for _ in range(12)]
        ]
    served = [outcomes for outcomes in everything if not isinstance(outcomes[0], RouterLoopError)]
    assert len(served) == 1
    assert all(isinstance(response, Response) and response.success for response in served[0])
    others = [outcome for outcomes in everything if outcomes is not served[0] for outcome in outcomes]
    assert len(others) == 110
    assert all(isinstance(outcome, RouterLoopError) for outcome in others)


def test_the_error_is_one_of_the_tree() -> None:
    """It is caught as an error of the library, and as the RuntimeError that asyncio would raise."""
    assert issubclass(RouterLoopError, LLMRouterError)
    assert issubclass(RouterLoopError, RuntimeError)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_with_the_router(pools: Pools, other: OtherLoop) -> None:
    """The loop of the parent is not one of the child, though it looks open there."""
    router = Router([pools.one()], provider=FakeProvider())
    other.run(router.send("x"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if asyncio.run(router.send("x")).success else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- the default routers ------------------------------------------------------------------------------


class Silent(FakeProvider):
    """A provider for the default routers, with one log for all."""

    sent: list[str] = []  # noqa: RUF012 - shared on purpose

    async def generate(
        self, deployment: Deployment, request: Request, dispatched: Callable[[], None]
    ) -> Reply:
        dispatched()
        self.sent.append(str(request.contents))
        return await super().generate(deployment, request, dispatched)


@pytest.fixture
def defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Configure default routers with one key, 40 requests a minute, and a file for their state."""
    monkeypatch.chdir(tmp_path)
    limits = {"rpm": 40, "tpm": None, "rpd": None}
    entry = {"key_id": "k", "model_name": "m", "tags": {"workload": "light"}, "limits": limits}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    monkeypatch.setenv("API_KEY_k", "a-made-up-secret")
    monkeypatch.setenv("LLM_ROUTER_STORE", f"sqlite:///{tmp_path}/state.sqlite3")
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("LLM_ROUTER_KEYS", raising=False)
    monkeypatch.setattr(llm_router.default_router, "_default", None)
    monkeypatch.setattr("llm_router.providers.gemini.GeminiProvider", lambda **_: Silent())
    monkeypatch.setattr(Silent, "sent", [])
    yield tmp_path
    gc.collect()  # which ends the threads of SQLite stores


async def default() -> Router:
    return get_request_router()


def test_each_loop_has_a_router_of_its_own(defaults: Path, other: OtherLoop, third: OtherLoop) -> None:
    """One loop always gets the same router, another loop another one."""
    one, two = other.run(default()), third.run(default())
    assert one is other.run(default())
    assert two is third.run(default())
    assert one is not two
    assert other.run(one.send("x")).success
    assert third.run(two.send("x")).success
    with pytest.raises(RouterLoopError):
        third.run(one.send("x"))
    for loop in (other, third):
        assert loop.run(get_status(loop))["rpm_usage"] == "2/40"
        loop.run(closed_default())


async def get_status(_loop: Any) -> Any:
    return (await get_key_manager().get_all_key_statuses())[0]


async def closed_default() -> None:
    await get_request_router().aclose()


def test_threads_with_loops_of_their_own_share_the_quota(defaults: Path) -> None:
    """Of 120 sends in loops of their own, by 12 threads, all return, and the quota is spent exactly."""

    async def send(name: str) -> Response:
        return await get_request_router().send(name, timeout=20)

    def work(thread: Any) -> list[Any]:
        return [asyncio.run(send(f"{thread}.{number}")) for number in range(10)]

    with ThreadPoolExecutor(12) as threads:
        responses = [response for answers in threads.map(work, range(12), timeout=60) for response in answers]
    assert len(responses) == 120
    assert sum(response.success for response in responses) == 40
    assert len(Silent.sent) == 40
    asyncio.run(closed_default())


def test_closing_the_default_router_closes_the_stores_of_loops_that_are_gone(defaults: Path) -> None:
    """Those wait for another loop, one for each that there was at a time; after that there is none."""
    gc.collect()  # what earlier tests have left behind
    together = threading.Barrier(4)

    async def look() -> None:
        await get_request_router().get_all_key_statuses()
        await asyncio.to_thread(together.wait, 10)  # so that each thread has a store of its own

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: asyncio.run(look()), range(4), timeout=60))
    assert len(_store_threads()) >= 4
    asyncio.run(closed_default())
    assert not _store_threads()


def _store_threads() -> list[str]:
    """Return the names of the threads of SQLite stores."""
    return [thread.name for thread in threading.enumerate() if thread.name == "llm_router-sqlite"]


def test_the_router_of_a_closed_loop_is_dropped(defaults: Path) -> None:
    """Loop after loop leaves neither routers nor threads behind, and forgets no count."""
    gc.collect()  # what earlier tests have left behind
    threads = threading.active_count()
    routers = []

    async def once(number: int) -> str:
        router = get_request_router()
        routers.append(weakref.ref(router))
        assert (await router.send("x")).success
        return (await router.get_all_key_statuses())[0]["rpm_usage"]

    assert [asyncio.run(once(number)) for number in range(8)] == [f"{number}/40" for number in range(1, 9)]
    gc.collect()
    assert sum(router() is not None for router in routers) <= 1
    assert threading.active_count() <= threads + 2  # of the last one: its store and its records
    asyncio.run(closed_default())
    gc.collect()
    assert threading.active_count() == threads


def test_a_router_made_outside_goes_to_the_loop_that_uses_it_first(defaults: Path, other: OtherLoop) -> None:
    """Without a running loop all get one router; the first loop to come gets the same."""
    router = get_request_router()
    assert get_request_router() is router
    assert get_key_manager() is router.keys
    before = router.loop
    assert before is None
    assert other.run(default()) is router
    assert other.run(router.send("x")).success
    assert get_request_router() is not router
    other.run(closed_default())


def test_a_router_made_outside_and_used_before_it_is_asked_for(
    defaults: Path, other: OtherLoop, third: OtherLoop
) -> None:
    """Used on a loop, it is that loop's; another loop gets another."""
    router = get_request_router()
    assert other.run(router.send("x")).success
    assert third.run(default()) is not router
    assert other.run(default()) is router
    for loop in (other, third):
        loop.run(closed_default())


def test_a_router_held_over_several_runs(defaults: Path) -> None:
    """A program may keep the router it got outside over several asyncio.run()."""
    router = get_request_router()
    for number in range(1, 4):
        assert asyncio.run(router.send("x")).success
        assert asyncio.run(get_status(None))["rpm_usage"] == f"{number}/40"
    asyncio.run(router.aclose())
    asyncio.run(closed_default())


def test_conversations_are_shared(defaults: Path, other: OtherLoop, third: OtherLoop) -> None:
    """What one loop heard, another remembers, also after the first was closed, and after a restart."""

    async def say(words: Any) -> Response:
        return await get_request_router().send_chat(conv_id="c", prompt=words)

    async def history() -> int:
        return len(await get_request_router().conversation("c").history())

    assert other.run(say("one")).success
    assert third.run(say("two")).success
    assert third.run(history()) == 4
    other.run(closed_default())
    other.close()
    assert third.run(history()) == 4
    third.run(closed_default())
    assert asyncio.run(history()) == 4
    asyncio.run(closed_default())


def test_conversations_without_a_file(
    defaults: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: OtherLoop
) -> None:
    """Where nothing can be written, they are kept in memory, for all loops, with a warning."""
    monkeypatch.delenv("LLM_ROUTER_STORE")
    url = f"sqlite:///{defaults}/keys.json/state.sqlite3"
    monkeypatch.setattr("llm_router.default_router.default_store_url", lambda: url)

    async def say(words: str) -> int:
        router = get_request_router()
        assert (await router.send_chat(conv_id="c", prompt=words)).success
        return len(await router.conversation("c").history())

    async def say_and_close() -> int:
        try:
            return await say("two")
        finally:
            await closed_default()

    assert other.run(say("one")) == 2
    assert asyncio.run(say_and_close()) == 4
    other.run(closed_default())
    warnings = [each.getMessage() for each in caplog.records if each.getMessage().startswith("conv")]
    assert len(warnings) == 1
    assert "is not a directory" in warnings[0]


def test_after_closing_the_configuration_is_read_again(defaults: Path, other: OtherLoop) -> None:
    """A closed router is not given out again: the next call reads the files anew."""
    router = other.run(default())
    path = defaults / "keys.json"
    path.write_text(path.read_text().replace('"m"', '"n"'))
    assert other.run(default()) is router
    other.run(router.aclose())
    assert other.run(get_status(None))["model"] == "n"
    other.run(closed_default())


def test_memory_is_for_one_loop_at_a_time(
    defaults: Path, monkeypatch: pytest.MonkeyPatch, other: OtherLoop, third: OtherLoop
) -> None:
    """Memory cannot be shared: a second open loop is refused, a later one goes on with the counts."""
    monkeypatch.setenv("LLM_ROUTER_STORE", "memory://")

    async def send() -> Any:
        response = await get_request_router().send("x")
        return response.success, (await get_key_manager().get_all_key_statuses())[0]["rpm_usage"]

    assert other.run(send()) == (True, "1/40")
    with pytest.raises(RouterLoopError, match="LLM_ROUTER_STORE"):
        third.run(send())
    assert get_request_router() is other.run(default())
    other.close()
    assert third.run(send()) == (True, "2/40")


def test_shares_of_loops_that_are_on_their_own_stay_small(
    defaults: Path, monkeypatch: pytest.MonkeyPatch, other: OtherLoop, third: OtherLoop
) -> None:
    """While the store fails, two loops together take less than two shares of the quota."""
    monkeypatch.setenv("LLM_ROUTER_STORE", "redis://127.0.0.1:1/0")

    async def sends() -> int:
        return sum([(await get_request_router().send("x")).success for _ in range(40)])

    assert other.run(sends()) == 10
    assert third.run(sends()) == 5
    other.run(closed_default())
    third.run(closed_default())


def test_a_dropped_router_leaves_its_share_to_the_next(
    defaults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store fails, loop after loop gets one share together, not one each."""
    monkeypatch.setenv("LLM_ROUTER_STORE", "redis://127.0.0.1:1/0")

    async def send() -> bool:
        return (await get_request_router().send("x")).success

    assert sum(asyncio.run(send()) for _ in range(20)) == 10


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_routers_of_its_own(defaults: Path, other: OtherLoop) -> None:
    """The child shares the file with its parent, and neither the router nor the loop."""
    router = other.run(default())
    assert other.run(router.send("x")).success
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mine = get_request_router()
            fine = mine is not router and asyncio.run(mine.send("x")).success
            code = 0 if fine else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert other.run(get_status(None))["rpm_usage"] == "2/40"
    other.run(closed_default())


async def test_a_failover_store_of_the_user_is_used_as_it_is(
    make_router: Callable[..., Router], pools: Pools, clock: ManualClock
) -> None:
    """A router does not put a second failover in front of one that it is given."""
    store = FailoverStore(MemoryStore(clock=clock), clock=clock)
    async with make_router([pools.one()], store=store) as router:
        assert (await router.send("x")).success
        assert router.keys.store is store
