"""A record that cannot be read is named with what to do, and a lift replaces it: its count is a lost one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest

from llm_router import Router
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota, Refill
from llm_router.domain.secret import Secret
from llm_router.errors import StoreCorruptError
from llm_router.stores.base import QUIET, RECOUNT, Taking
from llm_router.stores.failover import FailoverStore
from llm_router.stores.redis import RedisStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stores.servers import RedisServer

ONE = Demand(1, 100)
TTL = 600.0
START = 1_800_041_000.25
QUOTAS = (Quota(Metric.RPM, 1000), Quota(Metric.TPM, 1_000_000), Quota(Metric.RPD, 100_000, Refill.DAILY))
WRONG: dict[str, Callable[[Any, str], Any]] = {
    "text": lambda client, key: client.set(key, "secret content"),
    "nothing": lambda client, key: client.set(key, b""),
    "list": lambda client, key: client.rpush(key, "secret content"),
}

NAMESPACE = "{llm_router}:"
NEEDED = [*itertools.product(["reservations", "others", "epoch"], WRONG), ("sweep", "list")]
"""What cannot be read at the keys that every call needs, and is not begun anew."""
SWEEPS = {
    "text": b"secret content",
    "nothing": b"",
    "time": b"1800041000250000",
    "cut short": b"\x01" + bytes(20),
    "without a cursor": b"\x01" + bytes(40),
    "with another cursor": b"\x01" + bytes(40) + b"secret",
}


class Place:
    """A server, with the synchronous client of a test, and the stores that use it."""

    def __init__(self, client: Any, target: Callable[[], Any]) -> None:
        self.client = client
        self._target = target

    def store(self, clock: ManualClock, **settings: Any) -> RedisStore:
        """Return another store."""
        return RedisStore(self._target(), clock=clock, **settings)

    def scopes(self) -> set[str]:
        """Return the keys of scopes."""
        return {key.decode() for key in self.client.scan_iter("*scope*")}


@pytest.fixture(params=["server", "fakeredis"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Provide a real server, and fakeredis."""
    if request.param == "fakeredis":
        fake = fakeredis.FakeServer()
        yield Place(fakeredis.FakeRedis(server=fake), lambda: fakeredis.FakeAsyncRedis(server=fake))
    else:
        server: RedisServer = request.getfixturevalue("server")
        with server.client() as client:
            yield Place(client, lambda: server.url)


def deployment(name: str = "a", model: str = "flash") -> Deployment:
    return Deployment(Key(name, Secret("AIza-not-a-key")), model, quotas=QUOTAS)


def key_of(scope: str, suffix: str = ":3") -> str:
    return f"{{llm_router}}:scope:{scope}{suffix}"


@pytest.mark.parametrize("suffix", [":3", ""])
@pytest.mark.parametrize("wrong", WRONG)
async def test_a_lift_begins_the_record_anew(place: Place, wrong: str, suffix: str) -> None:
    """For a second it grants nothing; then what is charged and taken counts as in any other."""
    a, clock = deployment(), ManualClock(START)
    WRONG[wrong](place.client, key_of(a.model_scope, suffix))
    async with aclosing(place.store(clock)) as store:
        before = await store.reserve("0", [a], ONE, TTL)
        assert before.deployment is None
        await store.cool_down(Cooldown.lift(a.model_scope, limits=True))
        assert place.scopes() == {key_of(a.model_scope)}
        quiet = await store.reserve("1", [a], ONE, TTL)
        assert [refusal.reason for refusal in quiet.refusals] == [RECOUNT]
        assert quiet.lifts != before.lifts
        await store.charge("process", 1, a, [Taking(clock.time() - 5.0, ONE)])
        clock.shift(QUIET)
        assert (await store.reserve("2", [a], ONE, TTL)).deployment is a
        [snapshot] = await store.snapshot([a])
        assert [quota.used for quota in snapshot.quotas] == [2, 200, 2]
        await store.release("2")
        assert [quota.used for quota in (await store.snapshot([a]))[0].quotas] == [1, 100, 1]


async def test_what_processes_took_is_charged_again(place: Place) -> None:
    """By each of them, before anything is granted; nothing counts twice."""
    a, clock = deployment(), ManualClock(START)
    stores = [FailoverStore(place.store(clock), clock=clock) for _ in range(2)]
    try:
        for number in range(6):
            decision = await stores[number % 2].reserve(str(number), [a], ONE, TTL)
            assert decision.deployment is a
            clock.shift(0.1)
        place.client.set(key_of(a.model_scope), "not ours")
        assert (await stores[0].reserve("no", [a], ONE, TTL)).deployment is None
        await stores[1].cool_down(Cooldown.lift(a.model_scope))
        for _ in range(3):
            assert (await stores[0].reserve("still no", [a], ONE, TTL)).deployment is None
            assert (await stores[1].reserve("not yet", [a], ONE, TTL)).deployment is None
        [snapshot] = await stores[0].snapshot([a])
        assert [quota.used for quota in snapshot.quotas] == [6, 600, 6]
        clock.shift(QUIET)
        assert (await stores[0].reserve("yes", [a], ONE, TTL)).deployment is a
    finally:
        for store in stores:
            await store.aclose()


async def test_a_lift_of_a_key_deletes_what_cannot_be_read(place: Place) -> None:
    """Nothing is left in its place, and its deployments are usable at once."""
    a, clock = deployment(), ManualClock(START)
    async with aclosing(place.store(clock)) as store:
        await store.cool_down(Cooldown(a.key_scope, clock.time() + 300.0, "rests"))
        for spoil in WRONG.values():
            place.client.delete(key_of(a.key_scope))
            spoil(place.client, key_of(a.key_scope))
            assert (await store.reserve("no", [a], ONE, TTL)).deployment is None
            await store.cool_down(Cooldown.lift(a.key_scope))
            assert key_of(a.key_scope) not in place.scopes()
            assert (await store.reserve("yes", [a], ONE, TTL)).deployment is a
            await store.release("yes")
            await store.cool_down(Cooldown(a.key_scope, clock.time() + 300.0, "rests"))
            assert (await store.reserve("no", [a], ONE, TTL)).refusals[0].reason == "rests"


async def test_only_a_lift_replaces_it(place: Place) -> None:
    """What is learnt, cooled down, retried or charged fails, and says what to do."""
    a, clock = deployment(), ManualClock(START)
    key = key_of(a.model_scope)
    place.client.set(key, "secret content")
    async with aclosing(place.store(clock)) as store:
        failed = await asyncio.gather(
            store.cool_down(Cooldown.learn(a.model_scope, LearntLimit(Metric.RPM, 3))),
            store.cool_down(Cooldown(a.model_scope, clock.time() + 30.0, "rests")),
            store.cool_down(Cooldown.retry(a.model_scope)),
            store.charge("process", 1, a, [Taking(clock.time(), ONE)]),
            return_exceptions=True,
        )
        for error in failed:
            assert isinstance(error, StoreCorruptError)
            assert repr(key) in str(error)
            assert "llm-router keys lift" in str(error)
            assert "secret content" not in str(error)
        assert place.client.get(key) == b"secret content"
        # In one call with what would need it, the lift takes effect in its turn.
        await asyncio.gather(
            store.cool_down(Cooldown.lift(a.model_scope)),
            store.cool_down(Cooldown(a.model_scope, clock.time() + 30.0, "rests")),
        )
        clock.shift(QUIET)
        assert (await store.reserve("r", [a], ONE, TTL)).refusals[0].reason == "rests"


@pytest.mark.parametrize("which", ["model", "key", "project", "provider"])
async def test_health_names_it_and_a_lift_by_hand_mends_it(place: Place, which: str) -> None:
    """In a router: what fails says which scope, and the command; it has nothing of the value."""
    clock = ManualClock(START)
    pool = [deployment("a"), deployment("a", "pro")]
    scopes = dict(zip(("model", "key", "project", "provider"), pool[0].scopes, strict=True))
    scope = scopes[which]
    store = place.store(clock)
    async with Router(pool, provider=FakeProvider(clock=clock), store=store, clock=clock) as router:
        await store.cool_down(Cooldown(scope, clock.time() + 300.0, "rests"))  # so that it is looked at
        place.client.set(key_of(scope), "secret content")
        command = "llm-router keys lift a" + (" --model flash" if which == "model" else "")
        words = f"unreadable record of {scope!r} in the store; remove it with {command}"
        health = await router.health_check()
        concerned = ["flash"] if which == "model" else ["flash", "pro"]
        assert health["problems"] == [f"a/{model}: {words}" for model in concerned]
        status = (await router.get_all_key_statuses())[0]
        assert (status["in_cooldown"], status["reason"]) == (True, words)
        response = await router.send("x", model="flash", fallback="none", max_wait=0.0)
        assert words in str(response.error)
        assert "secret content" not in str(response.error)
        await router.keys.lift("a", "flash" if which == "model" else None)
        clock.shift(QUIET)
        assert (await router.health_check())["problems"] == []
        assert (await router.send("x", model="flash", fallback="none", max_wait=0.0)).success
    assert b"secret content" not in [place.client.get(key) for key in place.scopes()]


async def test_a_lift_by_hand_leaves_what_an_unreadable_record_hid_disabled(place: Place) -> None:
    """The record of the provider is replaced first; then the key is seen to be disabled."""
    a, clock = deployment(), ManualClock(START)
    store = place.store(clock)
    async with Router([a], provider=FakeProvider(clock=clock), store=store, clock=clock) as router:
        await router.keys.disable("a")
        await store.cool_down(Cooldown(a.provider_scope, clock.time() + 300.0, "rests"))
        place.client.set(key_of(a.provider_scope), "not ours")
        [status] = await router.keys.lift("a")
        assert status["state"] == "disabled"


@pytest.mark.parametrize(("name", "wrong"), NEEDED)
async def test_what_every_call_needs_is_named_with_what_deleting_it_costs(
    place: Place, name: str, wrong: str
) -> None:
    """It is left as it was, and nothing is written; once it is deleted, all is as on an empty server."""
    a, clock = deployment(), ManualClock(START)
    key = f"{NAMESPACE}{name}:3"
    WRONG[wrong](place.client, key)
    async with aclosing(place.store(clock)) as store:
        calls: list[Callable[[], Awaitable[object]]] = [lambda: store.reserve("0", [a], ONE, TTL)]
        if name == "reservations":
            calls.append(lambda: store.settle("0", ONE))
        if name == "others":  # of another type, it is in the way of what would be written to it
            calls = [lambda: store.cool_down(Cooldown(a.key_scope, clock.time() + 30.0, "rests"))]
        for call in calls:
            with pytest.raises(StoreCorruptError) as caught:
                await call()
            assert repr(key) in str(caught.value)
            assert "or delete it; " in str(caught.value)
            assert "secret content" not in str(caught.value)
            assert [found.decode() for found in place.client.scan_iter()] == [key]
        place.client.delete(key)
        assert (await store.reserve("1", [a], ONE, TTL)).deployment is a


@pytest.mark.parametrize("value", SWEEPS)
async def test_the_state_of_sweeping_begins_anew(place: Place, value: str) -> None:
    """What was reserved before, also under a clock that was set back, is settled as usual."""
    a, clock = deployment(), ManualClock(START)
    async with aclosing(place.store(clock)) as store:
        await store.reserve("early", [a], ONE, 3 * TTL)
        clock._now -= 5.0
        for number in range(3):
            await store.reserve(f"late {number}", [a], ONE, TTL)
        place.client.set(f"{NAMESPACE}sweep:3", SWEEPS[value])
        await store.settle("late 0", Demand(1, 150))
        assert place.client.get(f"{NAMESPACE}sweep:3") != SWEEPS[value]
        await store.reserve("last", [a], ONE, 1.0)
        clock.shift(10.0)
        await store.settle("late 1", Demand(1, 150))
        await store.settle("last", Demand(1, 150))  # too late
        assert [quota.used for quota in (await store.snapshot([a]))[0].quotas] == [5, 600, 5]
        assert place.client.pttl(f"{NAMESPACE}reservations:3") >= 3 * TTL * 1000
        clock.shift(TTL)
        await store.settle("late 2", Demand(1, 900))  # too late, too
        await store.settle("early", Demand(1, 150))
        assert [quota.used for quota in (await store.snapshot([a]))[0].quotas] == [0, 0, 5]
        await store.reserve("another", [a], ONE, TTL)
        assert {id_.decode() for id_ in place.client.hkeys(f"{NAMESPACE}reservations:3")} == {"another"}
