"""Whatever the client library raises while a connection breaks is a StoreError; a bug of ours is not."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import fakeredis
import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import StoreUnavailableError
from llm_router.stores.redis import RedisStore, batch

ONE = Demand(1, 0)
ERRORS = [
    TypeError("'NoneType' object is not callable"),  # asyncio of Python 3.13, writing to a closed transport
    RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"),
    AttributeError("'NoneType' object has no attribute 'writelines'"),
    asyncio.IncompleteReadError(b"", 1),
    ValueError("I/O operation on closed file"),
]

every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@pytest.fixture
def a() -> Deployment:
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.RPM, 5),))


class BrokenClient:
    """A client whose connection breaks in the middle of every command."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def execute_command(self, *args):
        await asyncio.sleep(0)
        raise self.error


async def _outcomes(store: RedisStore, a: Deployment) -> list[object]:
    calls = (
        store.reserve("r", [a], ONE, 60),
        store.settle("s", ONE),
        store.release("t"),
        store.cool_down(Cooldown(a.key_scope, time.time() + 30, "rests")),
        store.snapshot([a]),
    )
    return await asyncio.gather(*calls, return_exceptions=True)


@every_error
@pytest.mark.parametrize("shards", [1, 3])
async def test_a_broken_connection_makes_the_store_unavailable(a, error, shards):
    """In every method, with a message that says what the client raised, and without its frames."""
    store = RedisStore(BrokenClient(error), shards=shards)
    for outcome in await _outcomes(store, a):
        assert isinstance(outcome, StoreUnavailableError)
        assert f"the client raised {type(error).__name__}" in str(outcome)
        assert outcome.__cause__ is outcome.__context__ is None
    await store.aclose()


@every_error
async def test_a_store_that_makes_its_own_client_is_guarded(server, monkeypatch, a, error):
    """On a server: the call fails as a StoreError, and the next one works on a new connection."""
    await _break_and_mend(RedisStore(server.url), monkeypatch, a, error)


@pytest.mark.slow
@every_error
async def test_a_store_on_a_cluster_is_guarded(servers, monkeypatch, a, error):
    """The same when the client loses its nodes and has to find them again."""
    cluster = servers.shared_cluster()
    cluster.flush()
    await _break_and_mend(RedisStore(cluster.url, shards=3), monkeypatch, a, error)


async def _break_and_mend(store: RedisStore, monkeypatch, a: Deployment, error: Exception) -> None:
    async def break_down(*args, **kwargs):
        raise error

    async with aclosing(store):
        for number in range(2):  # before the first connection is made, and on one that is open
            with monkeypatch.context() as broken:
                broken.setattr(AbstractConnection, "send_packed_command", break_down)
                assert {type(outcome) for outcome in await _outcomes(store, a)} == {StoreUnavailableError}
            assert (await store.reserve(f"r{number}", [a], ONE, 60)).deployment is a
        assert [quota.used for quota in (await store.snapshot([a]))[0].quotas] == [2]


async def test_an_error_while_closing_is_not_raised(server, monkeypatch, a):
    """Closing a broken connection is closing it."""
    store = RedisStore(server.url)
    await store.snapshot([a])

    async def break_down(self):
        await close(self)
        raise TypeError("'NoneType' object is not callable")

    close = Redis.aclose
    monkeypatch.setattr(Redis, "aclose", break_down)
    await store.aclose()


@pytest.mark.parametrize(("where", "name"), [(batch.Server, "now"), (batch, "decode")])
async def test_an_error_in_our_own_code_is_not_translated(monkeypatch, a, where, name):
    """A mistake before or after the call of the client stays visible as what it is."""

    def stumble(*args):
        raise TypeError("a bug")

    async with fakeredis.FakeAsyncRedis() as client:
        store = RedisStore(client)
        await store.snapshot([a])
        monkeypatch.setattr(where, name, stumble)
        with pytest.raises(TypeError, match="a bug"):
            await store.reserve("r", [a], ONE, 60)
