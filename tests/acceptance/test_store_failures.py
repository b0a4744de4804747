"""A router on a real server that fails in every way a server can, and recovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from llm_router import Deployment, Router
from llm_router.stores.base import QUIET, Sharded
from llm_router.stores.redis import RedisStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools
    from tests.stores.servers import RedisServer

pytestmark = pytest.mark.slow


T = TypeVar("T")

TIMEOUT = 0.4
"""Seconds that the store waits for the server: real ones, since a frozen server reads no manual clock."""


class Kill:
    def strike(self, server: RedisServer) -> None:
        server.kill()

    def heal(self, server: RedisServer) -> None:
        server.start()  # and empty


class Freeze:
    def strike(self, server: RedisServer) -> None:
        server.freeze()

    def heal(self, server: RedisServer) -> None:
        server.thaw()


class ReadOnly:
    """Demoted to the replica of a server that is not there, as in the middle of a failover."""

    def strike(self, server: RedisServer) -> None:
        with server.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", "1")

    def heal(self, server: RedisServer) -> None:
        with server.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
            client.script_flush()


class OutOfMemory:
    def strike(self, server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")

    def heal(self, server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("maxmemory", "0")


class PasswordChanged:
    """No longer admits clients without the new password."""

    def strike(self, server: RedisServer) -> None:
        with server.client() as client:
            client.config_set("requirepass", "new-password")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def heal(self, server: RedisServer) -> None:
        with server.client(password="new-password") as client:
            client.config_set("requirepass", "")


class Failure(Protocol):
    """What can happen to a server."""

    def strike(self, server: RedisServer) -> None: ...

    def heal(self, server: RedisServer) -> None: ...


FAILURES: list[Failure] = [Kill(), Freeze(), ReadOnly(), OutOfMemory(), PasswordChanged()]


async def _timed(call: Awaitable[T]) -> tuple[T, float]:
    """Await a call and return its result and the real seconds it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    return await call, loop.time() - began


async def _until(condition: Callable[[], Awaitable[bool]], clock: ManualClock) -> bool:
    """Let probes become due and run until the condition is met, for at most 60 rounds."""
    for _ in range(60):
        if await condition():
            return True
        clock.shift(31)
        await asyncio.sleep(0.05)  # for the answer of the real server
    return False


@pytest.fixture
def on_server(
    clock: ManualClock, provider: FakeProvider
) -> Callable[..., AbstractAsyncContextManager[Router]]:
    @asynccontextmanager
    async def make(url: str, deployments: Iterable[Deployment], **options: Any) -> AsyncIterator[Router]:
        store = RedisStore(url, timeout=TIMEOUT, clock=clock)
        async with Router(deployments, store=store, provider=provider, clock=clock, **options) as router:
            yield router
        await store.aclose()

    return make


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.slow
async def test_a_router_continues_alone_and_returns(
    on_server: Callable[..., AbstractAsyncContextManager[Router]],
    redis_server: RedisServer,
    pools: Pools,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
    failure: Failure,
) -> None:
    """Failing: one bounded delay, then a share of the quota. Recovered: it returns. One log line each."""
    async with on_server(redis_server.url, [pools.one(rpm=40, rpd=400)], local_share=0.25) as router:
        assert (await router.send("x")).success
        failure.strike(redis_server)
        response, seconds = await _timed(router.send("x"))
        assert response.success
        assert seconds < 4 * TIMEOUT
        for _ in range(5):
            response, seconds = await _timed(router.send("x"))
            assert response.success
            assert seconds < TIMEOUT
        health = await router.health_check()
        assert (health["healthy"], health["store_ok"], health["store"]) == (True, False, "RedisStore")
        assert any("store" in problem for problem in health["problems"])
        assert sum(r.success for r in [await router.send("x") for _ in range(20)]) == 3  # 40/4, less 7 sent

        failure.heal(redis_server)

        async def back() -> bool:
            return (await router.health_check())["store_ok"]

        assert await _until(back, clock)
        assert await _served(router, clock)
        status = (await router.get_all_key_statuses())[0]
        assert int(status["rpd_usage"].split("/")[0]) >= 10  # what was spent alone was carried over
    logged = [record.getMessage().split(",")[0] for record in caplog.records if record.name == "llm_router"]
    assert logged == ["the store fails", "the store answers again"]


async def test_closed_refuses_without_delay(
    on_server: Callable[..., AbstractAsyncContextManager[Router]],
    redis_server: RedisServer,
    pools: Pools,
    provider: FakeProvider,
) -> None:
    """With on_store_failure="closed" every send is unsuccessful, and only the first one waits."""
    async with on_server(redis_server.url, [pools.one()], on_store_failure="closed") as router:
        assert (await router.send("x")).success
        redis_server.freeze()
        try:
            response, seconds = await _timed(router.send("x"))
            assert not response.success
            assert "store" in str(response.error)
            assert seconds < 4 * TIMEOUT
            responses, seconds = await _timed(asyncio.gather(*(router.send("x") for _ in range(50))))
            assert not any(response.success for response in responses)
            assert seconds < TIMEOUT
        finally:
            redis_server.thaw()
    assert len(provider.calls) == 1


@pytest.mark.slow
async def test_a_server_that_stays_away_is_probed_silently(
    on_server: Callable[..., AbstractAsyncContextManager[Router]],
    redis_server: RedisServer,
    pools: Pools,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A probe without an answer changes nothing: one line is logged, and no caller waits again."""
    async with on_server(redis_server.url, [pools.one()], on_store_failure="closed") as router:
        assert (await router.send("x")).success
        redis_server.freeze()
        try:
            for _ in range(4):
                await router.send("x")
                clock.shift(31)
                response, seconds = await _timed(router.send("x"))
                assert not response.success
                await asyncio.sleep(1.5 * TIMEOUT)  # until the probe has failed
                assert not (await router.health_check())["store_ok"]
            assert seconds < TIMEOUT
        finally:
            redis_server.thaw()
    assert len([record for record in caplog.records if record.name == "llm_router"]) == 1


async def test_open_goes_on_without_limits(
    on_server: Callable[..., AbstractAsyncContextManager[Router]], redis_server: RedisServer, pools: Pools
) -> None:
    """With on_store_failure="open" nothing is refused while the server is down."""
    async with on_server(redis_server.url, [pools.one(rpm=2)], on_store_failure="open") as router:
        redis_server.kill()
        assert all([(await router.send("x")).success for _ in range(20)])


async def test_an_unreachable_server_from_the_start(
    on_server: Callable[..., AbstractAsyncContextManager[Router]], pools: Pools
) -> None:
    """A router whose server was never available works alone from its first send."""
    async with on_server("redis://127.0.0.1:1/0", [pools.one(rpm=40)]) as router:
        response, seconds = await _timed(router.send("x"))
        assert response.success
        assert seconds < 4 * TIMEOUT


async def _served(router: Router, clock: ManualClock) -> bool:
    """Send once more if the server is quiet, because it may have lost something."""
    if (await router.send("x")).success:
        return True
    clock.shift(QUIET)
    return (await router.send("x")).success


async def test_a_flushed_server_gives_each_process_its_share(
    on_server: Callable[..., AbstractAsyncContextManager[Router]],
    redis_server: RedisServer,
    pools: Pools,
    clock: ManualClock,
) -> None:
    """FLUSHALL and SCRIPT FLUSH: nobody knows what those have spent that wait for quota, and do not call."""
    deployment = pools.one(rpm=3)
    async with (
        on_server(redis_server.url, [deployment]) as router,
        on_server(redis_server.url, [deployment]) as other,  # which does not know that the quota is spent
    ):
        assert (await other.health_check())["store_ok"]
        assert [(await router.send("x")).success for _ in range(4)] == [True, True, True, False]
        with redis_server.client() as client:
            client.flushall()
            client.script_flush()
        clock.shift(1.0)
        assert (await other.send("x")).retry_after == QUIET
        clock.shift(QUIET)
        assert [(await other.send("x")).success for _ in range(3)] == [True, False, False]
        for each in (router, other):
            [status] = await each.get_all_key_statuses()
            assert status["rpm_usage"] == "1/3"
            assert (await each.health_check())["store_ok"]


async def _back(router: Router, clock: ManualClock) -> bool:
    async def is_back() -> bool:
        return (await router.health_check())["store_ok"]

    return await _until(is_back, clock)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["local", "closed"])
async def test_a_replica_takes_over(
    on_server: Callable[..., AbstractAsyncContextManager[Router]],
    servers_module: ModuleType,
    redis_server: RedisServer,
    pools: Pools,
    clock: ManualClock,
    provider: FakeProvider,
    policy: str,
) -> None:
    """Its primary is killed: one bounded delay, then the policy, then the replica with all counts.

    It may have missed the last writes, so ``closed`` refuses until what was taken before has come back.
    """
    binary = next(iter(servers_module.find_servers().values()))
    with servers_module.running(binary) as replica, replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", redis_server.port)
        servers_module.wait_for_replica(client)
        async with (
            servers_module.Relay(redis_server.port) as relay,
            on_server(
                f"redis://127.0.0.1:{relay.port}", [pools.one(rpm=40, rpd=100)], on_store_failure=policy
            ) as router,
        ):
            assert all([(await router.send("x")).success for _ in range(5)])
            with redis_server.client() as primary:
                assert primary.wait(1, 5000) == 1
            redis_server.kill()
            response, seconds = await _timed(router.send("x"))
            assert response.success == (policy == "local")
            assert seconds < 4 * TIMEOUT
            client.execute_command("REPLICAOF", "NO", "ONE")
            relay.target = replica.port
            assert await _back(router, clock)
            if policy == "closed":
                assert not (await router.send("x")).success
                clock.shift(61.0)
            assert await _served(router, clock)
            [status] = await router.get_all_key_statuses()
            assert len(provider.calls) == (7 if policy == "local" else 6)
            assert status["rpd_usage"] == f"{len(provider.calls)}/100"  # replicated, carried over, and new
        assert not list(client.scan_iter("*:reservations*"))


@pytest.mark.slow
async def test_a_node_of_a_cluster_fails_and_returns(
    on_server: Callable[..., AbstractAsyncContextManager[Router]],
    servers_module: ModuleType,
    pools: Pools,
    clock: ManualClock,
    provider: FakeProvider,
) -> None:
    """The store has shards on three nodes: while one is down the policy applies to all of them."""
    binary = next(iter(servers_module.find_servers().values()))
    with servers_module.running_cluster(binary) as cluster:
        deployments = pools.many(12, rpm=40)
        async with on_server(f"{cluster.url}?shards=3", deployments) as router:
            assert all([(await router.send("x")).success for _ in range(12)])
            assert isinstance(router.keys.store, Sharded)
            assert {router.keys.store.shard_of(deployment) for deployment in deployments} == {0, 1, 2}
            cluster.nodes[1].kill()
            responses, seconds = await _timed(asyncio.gather(*(router.send("x") for _ in range(12))))
            assert all(response.success for response in responses)
            assert seconds < 6 * TIMEOUT
            assert not (await router.health_check())["store_ok"]
            cluster.nodes[1].start()
            assert await _back(router, clock)
            assert all([(await router.send("x")).success for _ in range(12)])
            assert (await router.health_check())["store_ok"]


async def test_a_slow_server_costs_its_timeout_once(
    on_server: Callable[..., AbstractAsyncContextManager[Router]], redis_server: RedisServer, pools: Pools
) -> None:
    """A server that takes 2 s per command times out once, and is then only probed in the background."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        try:
            while data := await reader.read(65_536):
                await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pump(reader, back_writer, 2.0))
            group.create_task(pump(back_reader, writer, 0.0))

    proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with on_server(f"redis://127.0.0.1:{port}/0", [pools.one(rpm=40)]) as router:
        response, seconds = await _timed(router.send("x"))
        assert response.success
        assert seconds < 4 * TIMEOUT
        responses, seconds = await _timed(asyncio.gather(*(router.send("x") for _ in range(9))))
        assert all(response.success for response in responses)
        assert seconds < TIMEOUT
    proxy.close()
