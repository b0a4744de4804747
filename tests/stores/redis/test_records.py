"""Records that begin anew: what a server lost is charged again, and nothing is counted twice."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.errors import StoreTimeoutError, StoreUnavailableError
from llm_router.stores.base import QUIET, RECOUNT, Decision, Taking
from llm_router.stores.redis import RedisStore
from llm_router.stores.redis.scripts import Client, load_script
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.stores.servers import RedisServer

START = 1_800_041_000.25
ONE = Demand(1, 100)
QUOTAS = (Quota(Metric.RPM, 100), Quota(Metric.TPM, 100_000), Quota(Metric.RPD, 1000, Refill.DAILY))
EPOCH = "{llm_router}:epoch:3"


def deployment(name: str = "a", *quotas: Quota) -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), "flash", quotas=quotas or QUOTAS)


def key_of(each: Deployment) -> str:
    return f"{{llm_router}}:scope:{each.model_scope}:3"


class Process:
    """A process that remembers what it took, as far as these tests need it."""

    def __init__(self, name: str, clock: ManualClock, url: str | Client, **settings: Any) -> None:
        self.store = RedisStore(url, clock=clock, **settings)
        self._name = name
        self._clock = clock
        self._counted: dict[Deployment, list[Taking]] = {}
        self._count = 0

    async def reserve(self, *candidates: Deployment, ttl: float = 600.0) -> Decision:
        self._count += 1
        decision = await self.store.reserve(f"{self._name} {self._count}", candidates, ONE, ttl)
        granted = decision.deployment
        if granted is not None:
            self.store.known[granted.model_scope] = decision.since
            self._counted.setdefault(granted, []).append(Taking(self._clock.time(), ONE))
        return decision

    async def charge(self, lost: Deployment) -> float:
        """Charge what was counted in the record that this process knows."""
        self._count += 1
        known = self.store.known[lost.model_scope]
        since = await self.store.charge(self._name, self._count, lost, [], self._counted[lost], known)
        self.store.known[lost.model_scope] = since
        return since

    async def used(self, charged: Deployment) -> int:
        """Return how many requests count, of the minute and of the day alike."""
        [snapshot] = await self.store.snapshot([charged])
        minute, tokens, day = (quota.used for quota in snapshot.quotas)
        assert minute == day == tokens / 100
        return minute


@asynccontextmanager
async def opened(*processes: Process) -> AsyncIterator[tuple[Process, ...]]:
    async with AsyncExitStack() as stack:
        for process in processes:
            await stack.enter_async_context(aclosing(process.store))
        yield processes


@pytest.fixture
def clock() -> ManualClock:
    """Provide the clock of all processes."""
    return ManualClock(START)


@pytest.fixture
async def processes(server: RedisServer, clock: ManualClock) -> AsyncIterator[tuple[Process, ...]]:
    """Provide two processes at one server."""
    async with opened(Process("one", clock, server.url), Process("two", clock, server.url)) as both:
        yield both


def reasons(decision: Decision) -> list[tuple[str, float]]:
    assert all(refusal.retry_at == refusal.wake_at for refusal in decision.refusals)
    return [(refusal.reason, refusal.retry_at) for refusal in decision.refusals]


# --- records ------------------------------------------------------------------------------------------------


async def test_a_brand_new_server_has_lost_nothing(processes: tuple[Process, ...]) -> None:
    """Neither the first process to come nor a later one waits."""
    one, two = processes
    for process in (one, two, one):
        decision = await process.reserve(deployment())
        assert decision.deployment is not None
        assert (decision.since, decision.lost, decision.reset_at) == (START, (), 0.0)


async def test_a_loss_is_noticed_though_a_new_process_came_first(
    server: RedisServer, clock: ManualClock, processes: tuple[Process, ...]
) -> None:
    """A new process cannot know that anything was there before; the first one that does stops all."""
    one, two = processes
    a, other = deployment(), deployment("other")
    await one.reserve(a)
    clock.shift(5.0)
    with server.client() as client:
        client.flushall()
    assert (await two.reserve(other)).reset_at == 0.0
    clock.shift(5.0)
    decision = await one.reserve(a)
    assert (decision.lost, decision.reset_at) == ((a,), clock.time())
    assert reasons(await two.reserve(other)) == [(RECOUNT, clock.time() + QUIET)]
    await one.charge(a)
    clock.shift(QUIET)
    assert (await two.reserve(other)).reset_at == clock.time() - QUIET
    assert (await two.reserve(a)).deployment is a
    assert [await one.used(a), await one.used(other)] == [2, 2]


async def test_a_second_process_that_missed_a_record_does_not_prolong_the_quiet_time(
    server: RedisServer, clock: ManualClock, processes: tuple[Process, ...]
) -> None:
    """It charges what it took, and goes on at once."""
    one, two = processes
    a, other = deployment(), deployment("other")
    await one.reserve(a)
    await two.reserve(a)
    clock.shift(5.0)
    with server.client() as client:
        assert client.delete(key_of(a)) == 1
    lost_at = clock.time()
    decision = await one.reserve(a, other)
    assert (decision.deployment, decision.lost, decision.reset_at) == (other, (a,), 0.0)
    assert reasons(decision) == [(RECOUNT, lost_at + QUIET)]
    assert await one.charge(a) == lost_at
    clock.shift(0.5)
    assert reasons(await one.reserve(a)) == [(RECOUNT, lost_at + QUIET)]
    decision = await two.reserve(a)
    assert decision.lost == (a,)
    assert reasons(decision) == [(RECOUNT, lost_at + QUIET)]
    clock.shift(0.5)
    assert (await one.reserve(a)).deployment is a
    decision = await two.reserve(a)
    assert decision.lost == (a,)
    assert reasons(decision) == [(RECOUNT, clock.time())]
    assert await two.charge(a) == lost_at
    assert (await two.reserve(a)).since == lost_at
    assert await one.used(a) == 4


@pytest.mark.parametrize("window", [60.0, 3600.0])
async def test_a_record_is_kept_for_as_long_as_a_process_may_know_it(
    server: RedisServer, clock: ManualClock, processes: tuple[Process, ...], window: float
) -> None:
    """For a window, though a steady quota has drained at once and its reservation has expired."""
    one, two = processes
    steady = deployment("a", Quota(Metric.RPM, 600_000, Refill.STEADY, window=window))
    since = (await one.reserve(steady, ttl=1.0)).since
    with server.client() as client:
        assert client.pttl(key_of(steady)) > window * 1000
    clock.shift(window - 1.0)
    await two.store.charge("two", 1, steady, [])  # which writes the record
    decision = await one.reserve(steady, ttl=1.0)
    assert (decision.since, decision.lost) == (since, ())


async def test_a_record_to_which_nothing_was_charged_is_kept(
    clock: ManualClock, processes: tuple[Process, ...]
) -> None:
    """Whatever was charged has come back by now: the caller knows the record all the same."""
    one, two = processes
    a = deployment("a", Quota(Metric.RPM, 10))
    one.store.known[a.model_scope] = await one.store.charge("one", 1, a, [], [Taking(START - 90.0, ONE)], 1.0)
    clock.shift(1.0)
    assert (await one.reserve(a)).deployment is a
    assert (await two.reserve(a)).deployment is a


@pytest.mark.parametrize("known", [float("nan"), float("inf"), -5.0, 1e300, START + 0.5])
async def test_an_odd_idea_of_a_record_concerns_only_its_model(
    processes: tuple[Process, ...], known: float
) -> None:
    """Whatever is written there: the operations of others are done."""
    one, _ = processes
    a, other = deployment(), deployment("other")
    one.store.known[a.model_scope] = known
    decisions = await asyncio.gather(*(one.reserve(other) for _ in range(5)), one.reserve(a))
    assert [decision.deployment for decision in decisions[:5]] == [other] * 5


# --- clocks that are set ------------------------------------------------------------------------------------


async def test_a_clock_that_was_ahead_when_the_epoch_began_loses_nothing(
    clock: ManualClock, processes: tuple[Process, ...]
) -> None:
    """Records that begin after the correction are as old as the epoch, and do not begin anew at each call."""
    one, two = processes
    clock.jump(86_400.0)
    await one.reserve(deployment("other"))
    clock.jump(-86_400.0)
    a = deployment()
    since = (await one.reserve(a)).since
    for process in (one, two, one, two):
        clock.shift(1.0)
        decision = await process.reserve(a)
        assert (decision.deployment, decision.since, decision.lost) == (a, since, ())
    assert await one.used(a) == 5


async def test_a_record_that_was_missed_is_not_quiet_until_tomorrow(
    server: RedisServer, clock: ManualClock, processes: tuple[Process, ...]
) -> None:
    """The clock was a day ahead when it was missed, and is corrected."""
    one, two = processes
    a = deployment()
    await one.reserve(a)
    clock.jump(86_400.0)
    with server.client() as client:
        client.delete(key_of(a))
    assert (await one.reserve(a)).lost == (a,)
    clock.jump(-86_400.0)
    clock.shift(QUIET)
    assert (await two.reserve(a)).deployment is a


async def test_when_something_was_lost_stays_the_same_number(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the difference between the server's clock and this machine's is measured from call to call."""
    a, real, off = deployment(), time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + off)
    async with aclosing(RedisStore(server.url)) as store:
        await store.reserve("r", [a], ONE, 60.0)
        with server.client() as client:
            client.flushall()
        first = (await store.reserve("s", [a], ONE, 60.0)).reset_at
        assert abs(first - real()) < 5.0
        for off in (0.05, 0.0, 0.08, -0.01):  # by less than what counts as setting the clock
            assert (await store.reserve(f"s {off}", [a], ONE, 60.0)).reset_at == first


async def test_the_epoch_of_a_quiet_year_is_kept(server: RedisServer, clock: ManualClock) -> None:
    """It expires a year after the last use, not after it began."""
    async with opened(Process("one", clock, server.url)) as (one,):
        await one.reserve(deployment())
    with server.client() as client:
        client.pexpire(EPOCH, 60_000)
        async with opened(Process("one", clock, server.url)) as (one,):
            await one.reserve(deployment())
        assert client.pttl(EPOCH) > 365 * 86_400_000


async def test_an_older_state_of_the_server_is_noticed(
    server: RedisServer, clock: ManualClock, processes: tuple[Process, ...]
) -> None:
    """It has the epoch from before, in which something was lost already."""
    one, _ = processes
    a = deployment()
    await one.reserve(a)
    clock.shift(5.0)
    with server.client() as client:
        client.flushall()
        await one.reserve(a)
        former = client.get(EPOCH)
        clock.shift(5.0)
        client.flushall()
        await one.reserve(a)
        await one.charge(a)
        clock.shift(5.0)
        client.set(EPOCH, former)
    decision = await one.reserve(a)
    assert (decision.deployment, decision.reset_at) == (None, clock.time())


# --- other servers ------------------------------------------------------------------------------------------


@pytest.fixture
def lone(servers: ModuleType, redis_binary: Path, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Provide a server that may be killed, with the options that the test names."""
    with servers.running(redis_binary, *getattr(request, "param", ())) as server:
        yield server


async def test_a_server_that_comes_back_empty(lone: RedisServer, clock: ManualClock) -> None:
    """It is noticed by the first call that knew it."""
    a = deployment()
    async with opened(Process("one", clock, lone.url)) as (one,):
        await one.reserve(a)
        clock.shift(5.0)
        lone.kill()
        with pytest.raises(StoreUnavailableError):
            await one.reserve(a)
        lone.start()
        decision = await one.reserve(a)
        assert (decision.lost, decision.reset_at) == ((a,), clock.time())
        await one.charge(a)
        clock.shift(QUIET)
        assert (await one.reserve(a)).deployment is a
        assert await one.used(a) == 2


@pytest.mark.parametrize("lone", [("--appendonly", "yes", "--appendfsync", "always")], indirect=True)
async def test_a_server_that_comes_back_with_everything(lone: RedisServer, clock: ManualClock) -> None:
    """No process can know that it lost nothing, so all charge; but nothing is counted twice."""
    a, other = deployment(), deployment("other")
    async with opened(Process("one", clock, lone.url), Process("two", clock, lone.url)) as (one, two):
        for process in (one, two, one):
            first = (await process.reserve(a)).since
            clock.shift(5.0)
        await one.store.settle("one 1", Demand(1, 200))
        await one.store.settle("two 1", Demand(1, 0))  # the last write of the record
        lone.kill()
        lone.start()
        for process in (one, two):  # whose connections it closed
            with suppress(StoreUnavailableError):
                await process.store.snapshot([])
        decision = await one.reserve(a)
        assert (decision.lost, decision.reset_at) == ((a,), clock.time())
        for process in (one, two, one):
            assert await process.charge(a) == clock.time() != first
        assert reasons(await two.reserve(other)) == [(RECOUNT, clock.time() + QUIET)]
        assert await one.used(a) == 3
        clock.shift(QUIET)
        for process in (one, two):
            assert (await process.reserve(a)).lost == ()
        assert await one.used(a) == 5


class Pair:
    """A client of a primary with a replica, which can be moved to the latter without an error."""

    def __init__(self, servers: ModuleType, primary: RedisServer, replica: RedisServer) -> None:
        self.primary = primary
        self.replica = replica
        self._clients = [Redis.from_url(server.url) for server in (primary, replica)]
        with replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            servers.wait_for_replica(client)

    def separate(self) -> None:
        """Promote the replica, once it has everything: it misses what is written from now on."""
        with self.primary.client() as primary, self.replica.client() as client:
            assert primary.wait(1, 5000) == 1
            client.execute_command("REPLICAOF", "NO", "ONE")

    async def move(self) -> None:
        """Send all further commands to the replica."""
        await self._clients.pop(0).aclose()

    async def execute_command(self, *args: Any) -> Any:
        return await self._clients[0].execute_command(*args)  # type: ignore[no-untyped-call]

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()


@pytest.fixture
async def pair(servers: ModuleType, redis_binary: Path) -> AsyncIterator[Pair]:
    with servers.running(redis_binary) as primary, servers.running(redis_binary) as replica:
        async with aclosing(Pair(servers, primary, replica)) as pair:
            yield pair


@pytest.mark.slow
async def test_only_what_a_replica_misses_is_charged_again(pair: Pair, clock: ManualClock) -> None:
    """What was replicated is there, and counts once; settlements and cooldowns meanwhile change nothing."""
    a, other = deployment(), deployment("other")
    async with opened(Process("one", clock, pair), Process("two", clock, pair)) as (one, two):
        for process in (one, two, one):
            await process.reserve(a)
            clock.shift(1.0)
        await two.store.settle("two 1", Demand(1, 0))
        await one.store.settle("one 2", Demand(1, 200))  # the last write that is replicated
        pair.separate()
        clock.shift(1.0)
        for process in (one, two, two):
            await process.reserve(a)
            clock.shift(1.0)
        await pair.move()
        await one.store.settle("one 1", Demand(1, 50))
        await one.store.cool_down(Cooldown(a.model_scope, clock.time() + 0.1, "rests"))
        await two.store.charge("two", 1_000, a, [Taking(clock.time(), Demand(0, 50))])
        decision = await two.reserve(other, a)
        assert (decision.lost, decision.reset_at) == ((a,), clock.time())
        clock.shift(0.5)
        assert (await one.reserve(a)).lost == (a,)
        since = await one.charge(a)
        assert since == clock.time() - 0.5
        assert await one.used(a) == 4
        two._count = 2_000
        assert await two.charge(a) == since
        assert await two.used(a) == 6
        clock.shift(0.5)
        for process in (one, two):
            assert (await process.reserve(a)).since == since
        assert await one.used(a) == 8


@pytest.mark.slow
async def test_another_server_is_noticed_though_it_has_the_script(
    pair: Pair, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the run of the server, which a message asks for now and then."""
    a = deployment()
    async with opened(Process("one", clock, pair)) as (one,):
        await one.reserve(a)
        clock.shift(1.0)
        await one.store.settle("one 1", Demand(1, 0))
        await one.store.charge("other", 1, a, [Taking(clock.time(), Demand(0, 100))])
        pair.separate()
        clock.shift(1.0)
        await one.reserve(a)
        with pair.replica.client() as client:
            client.script_load(load_script().source)
        await pair.move()
        monkeypatch.setattr("llm_router.stores.redis.batch._CHECK_EVERY", 0.0)
        decision = await one.reserve(a)
        assert (decision.lost, decision.reset_at) == ((a,), clock.time())
        await one.charge(a)
        assert await one.used(a) == 2


@pytest.mark.slow
async def test_another_server_is_noticed_though_its_clock_differs(pair: Pair) -> None:
    """Its first answer says only that: the message is sent once more, and asks for the run again."""
    a = deployment()
    async with aclosing(RedisStore(pair, timeout=1.0)) as store:
        await store.reserve("r", [a], ONE, 60.0)
        pair.separate()
        with pair.replica.client() as client:
            client.script_load(load_script().source)
        await pair.move()
        [server] = store._servers
        assert server.ahead is not None
        server.ahead -= 3_600_000_000  # as if the clock of the other server were an hour ahead
        server.distrust()
        decision = await store.reserve("s", [a], ONE, 60.0)
        assert decision.deployment is None
        assert [refusal.reason for refusal in decision.refusals] == [RECOUNT]


@pytest.mark.slow
async def test_a_failed_call_makes_the_next_one_ask(lone: RedisServer, clock: ManualClock) -> None:
    """Until one succeeds; afterwards the server is not asked for a while."""
    a = deployment()
    async with opened(Process("one", clock, lone.url, timeout=0.3)) as (one,):

        def asked() -> int:
            with lone.client() as client:
                calls: int = client.info("commandstats").get("cmdstat_info", {"calls": 0})["calls"]
                client.config_resetstat()
            return calls

        await one.reserve(a)
        asked()
        await one.reserve(a)
        assert asked() == 0
        lone.freeze()
        with pytest.raises(StoreTimeoutError):
            await one.reserve(a)
        lone.thaw()
        await one.reserve(a)
        assert asked() == 1
        await one.reserve(a)
        assert asked() == 0


@pytest.mark.slow
async def test_a_replica_can_be_read(servers: ModuleType, redis_binary: Path, clock: ManualClock) -> None:
    """A snapshot changes nothing that the primary needs, not even the epoch."""
    a = deployment()
    with servers.running(redis_binary) as primary, servers.running(redis_binary) as replica:
        async with opened(Process("one", clock, primary.url), Process("two", clock, replica.url)) as both:
            one, two = both
            await one.reserve(a)
            with replica.client() as client:
                client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
                servers.wait_for_replica(client)
            assert await two.used(a) == 1
            with pytest.raises(StoreUnavailableError, match="read-only replica"):
                await two.reserve(a)
            decision = await one.reserve(a)
            assert (decision.deployment, decision.reset_at) == (a, 0.0)


async def test_a_shard_that_lost_something_is_named_by_its_candidates(
    server: RedisServer, clock: ManualClock
) -> None:
    """Where several shards refuse, the first candidate's shard says when; where one grants, that one does."""
    async with opened(Process("one", clock, server.url, shards=3)) as (one,):
        found: dict[int, Deployment] = {}
        for name in map("key-{}".format, range(50)):
            found.setdefault(one.store.shard_of(deployment(name)), deployment(name))
        b, c = found[1], found[2]
        full = deployment(c.key.key_id, Quota(Metric.RPM, 0))
        for each in (b, c):
            assert (await one.reserve(each)).deployment is each
        clock.shift(5.0)
        with server.client() as client:
            tag = next(client.scan_iter(f"*{b.model_scope}*")).decode().partition("}")[0]
            client.delete(*client.scan_iter(f"{tag}}}*"))
        decision = await one.reserve(b, c)
        assert (decision.deployment, decision.lost, decision.reset_at) == (c, (b,), 0.0)
        decision = await one.reserve(b, full)
        assert (decision.deployment, decision.lost, decision.reset_at) == (None, (b,), clock.time())
        decision = await one.reserve(full, b)
        assert (decision.deployment, decision.lost, decision.reset_at) == (None, (b,), 0.0)
