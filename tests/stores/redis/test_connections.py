"""Every kind of connection that a URL can describe, actually used; and nothing secret is shown."""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import trustme
from trustme import CA

from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.quota import Demand, Metric, Quota
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError, StoreUnavailableError
from llm_router.stores import RateLimitStore
from llm_router.stores.redis import RedisStore
from llm_router.stores.urls import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stores.servers import RedisServer

PASSWORD = "s3cret:w@rd/with%odd#ones"
LOGIN = f"router:{quote(PASSWORD, safe='')}@"
TIMEOUT = 1.0


@pytest.fixture
def a() -> Deployment:
    return Deployment(Key("a", Secret("AIza-not-a-key")), "flash", quotas=(Quota(Metric.RPM, 2),))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def guarded(servers: ModuleType) -> Iterator[RedisServer]:
    """Provide a server that admits only one user, with a password."""
    binary = next(iter(servers.find_servers().values()))
    with servers.running(binary) as server, server.client() as client:
        rights = ("on", f">{PASSWORD}", "~*", "+@all")
        client.execute_command("ACL", "SETUSER", "router", *rights)
        client.execute_command("ACL", "SETUSER", "default", "off")
        yield server


def opened(url: str, **settings: Any) -> aclosing[RateLimitStore]:
    return aclosing(RedisStore(url, **settings) if settings else open_store(url))


async def works(store: RateLimitStore, a: Deployment) -> bool:
    """Return whether it grants exactly what there is."""
    granted = [(await store.reserve(f"r{n}", [a], Demand(1, 0), 60)).deployment for n in range(3)]
    return granted == [a, a, None]


def speaking_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Return the TLS context of a server that proves to be one of ``names``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


@contextmanager
def trusted(authority: trustme.CA) -> Iterator[str]:
    """Yield the path of a file with the certificate of ``authority``."""
    with authority.cert_pem.tempfile() as path:
        yield quote(path, safe="")


# --- connections --------------------------------------------------------------------------------------------


async def test_tls(servers: ModuleType, guarded: RedisServer, authority: CA, a: Deployment) -> None:
    """The server proves its identity, the client logs in, and the store works as without TLS."""
    tls = speaking_tls(authority, "127.0.0.1", "localhost")
    async with servers.Relay(guarded.port, tls) as relay:
        with trusted(authority) as path:
            url = f"rediss://{LOGIN}127.0.0.1:{relay.port}/0?ssl_ca_certs={path}&shards=2"
            async with opened(url) as store:
                assert await works(store, a)
    assert PASSWORD not in repr(store)


@pytest.mark.slow
async def test_tls_on_a_cluster(servers: ModuleType, authority: CA, a: Deployment) -> None:
    """The same on every node of a cluster."""
    binary = next(iter(servers.find_servers().values()))
    tls = speaking_tls(authority, "127.0.0.1")
    with servers.running_cluster(binary, primaries=1) as cluster, trusted(authority) as path:
        async with servers.Relay(cluster.nodes[0].port, tls) as relay:
            with cluster.nodes[0].client() as client:
                client.config_set("cluster-announce-port", relay.port)
            async with opened(f"rediss+cluster://127.0.0.1:{relay.port}?ssl_ca_certs={path}") as store:
                assert await works(store, a)


@pytest.mark.parametrize("way", ["rediss://", "rediss+cluster://"])
async def test_a_server_that_cannot_prove_its_identity(
    servers: ModuleType, server: RedisServer, authority: CA, a: Deployment, way: str
) -> None:
    """Its certificate is from an authority that is not trusted, or for another host: nothing is sent."""
    stranger = trustme.CA()
    for known, names in ((stranger, ["127.0.0.1"]), (authority, ["example.org"])):
        async with servers.Relay(server.port, speaking_tls(known, *names)) as relay:
            with trusted(authority) as path:
                url = f"{way}{LOGIN}127.0.0.1:{relay.port}?ssl_ca_certs={path}"
                async with opened(url, timeout=TIMEOUT) as store:
                    error = await failure_of(store, a)
        assert "does not prove its identity" in str(error)
        assert "ssl_ca_certs=/path/of/ca.pem" in str(error)
        _assert_discreet(error, repr(store))


@pytest.mark.slow
async def test_a_server_that_does_not_speak_tls(server: RedisServer, a: Deployment) -> None:
    """One that answers in plain text is recognised; one that waits for a line times out."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"-ERR what was that\r\n")
        writer.close()

    assert "does not speak TLS" in await failure_before(answer, "rediss", a)
    async with opened(server.url.replace("redis://", "rediss://"), timeout=0.3) as store:
        assert "did not answer" in str(await failure_of(store, a))


async def test_a_unix_socket(servers: ModuleType, a: Deployment) -> None:
    """With and without a database number."""
    binary = next(iter(servers.find_servers().values()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s ocket"
        with servers.running(binary, "--unixsocket", str(path)) as server, server.client(db=3) as client:
            for options, name in (("", "?db=0"), ("?db=3", "?db=3")):
                async with opened(f"unix://{quote(str(path))}{options}") as store:
                    assert await works(store, a)
                    assert repr(store) == f"RedisStore('{path}{name}', namespace='llm_router')"
            assert client.dbsize() == 4


async def test_a_unix_socket_with_a_login(servers: ModuleType, a: Deployment) -> None:
    """The password comes before the path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        binary = next(iter(servers.find_servers().values()))
        with servers.running(binary, "--unixsocket", str(path), "--requirepass", PASSWORD):
            async with opened(f"unix://:{quote(PASSWORD, safe='')}@{path}") as store:
                assert await works(store, a)


async def test_a_user_and_a_password(guarded: RedisServer, a: Deployment) -> None:
    """Of an ACL, with characters that have a meaning in a URL."""
    async with opened(guarded.url.replace("://", f"://{LOGIN}")) as store:
        assert await works(store, a)
    async with opened(guarded.url, timeout=TIMEOUT) as store:
        assert "refused the login" in str(await failure_of(store, a))


@pytest.mark.parametrize("place", ["/5", "?db=5", "/5?client_name=me"])
async def test_a_database_number(server: RedisServer, a: Deployment, place: str) -> None:
    """As a path or an option: everything is stored in that database and nowhere else."""
    async with opened(server.url.removesuffix("/0") + place) as store:
        assert await works(store, a)
        assert f":{server.port}/5'" in repr(store)
    with server.client(db=5) as client, server.client() as other:
        assert client.dbsize() == 4
        assert other.dbsize() == 0


async def test_two_namespaces(server: RedisServer, a: Deployment) -> None:
    """Two routers on one database do not affect each other."""
    for name in ("one", "two"):
        async with opened(server.url, namespace=name) as store:
            assert await works(store, a)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@host/zero",
        "redis://:s3cret@host/0?db=x",
        "redis://:s3cret@host/0?socket_timeout=soon",
        "redis://:s3cret@host/0?nonsense=s3cret",
        "redis+cluster://:s3cret@host/3",
        "redis+cluster://:s3cret@host?nonsense=s3cret",
        "rediss://:s3cret@host?ssl_cert_reqs=s3cret",
        "unix://:s3cret@/socket?nonsense=s3cret",
    ],
)
def test_what_redis_py_cannot_use_is_reported_at_once(url: str) -> None:
    """When the store is created, not at the first send; and without what may be a password."""
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_an_unknown_option_is_named() -> None:
    """The names of the options are shown, not their values."""
    with pytest.raises(ConfigError, match=r"host:6379/0: check its options \(nonsense\)"):
        open_store("redis://:s3cret@host?nonsense=1&shards=2")


# --- nothing secret -----------------------------------------------------------------------------------------


async def failure_of(store: RateLimitStore, a: Deployment) -> StoreUnavailableError:
    """Return what the store raises."""
    with pytest.raises(StoreUnavailableError) as caught:
        await store.reserve("r", [a], Demand(1, 0), 60)
    return caught.value


async def failure_before(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    scheme: str,
    a: Deployment,
) -> str:
    """Return what the store says about a server that answers as ``answer`` does, and check for secrets."""
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"{scheme}://{LOGIN}127.0.0.1:{port}", timeout=TIMEOUT) as store:
            error = await failure_of(store, a)
    _assert_discreet(error, repr(store))
    return str(error)


def _assert_discreet(error: BaseException, *more: str) -> None:
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    for text in (shown, str(error), repr(error), *more):
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text
        assert "s3cret" not in text
    assert error.__cause__ is None
    assert error.__context__ is None


async def _wrong_password(guarded: RedisServer) -> str:
    return guarded.url.replace("://", f"://{LOGIN.replace('router:', 'another:')}")


async def _no_server(guarded: RedisServer) -> str:
    guarded.kill()
    return guarded.url.replace("://", f"://{LOGIN}")


async def _no_answer(guarded: RedisServer) -> str:
    guarded.freeze()
    return guarded.url.replace("://", f"://{LOGIN}")


async def _no_right(guarded: RedisServer) -> str:
    with guarded.client(username="router", password=PASSWORD) as client:
        client.execute_command("ACL", "SETUSER", "router", "-evalsha")
    return guarded.url.replace("://", f"://{LOGIN}")


async def _no_cluster(guarded: RedisServer) -> str:
    return f"redis+cluster://{LOGIN}127.0.0.1:{guarded.port}"


@pytest.mark.parametrize(
    "trouble",
    [_wrong_password, _no_server, pytest.param(_no_answer, marks=pytest.mark.slow), _no_right, _no_cluster],
)
async def test_no_failure_shows_the_password(
    guarded: RedisServer,
    a: Deployment,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[..., Coroutine[Any, Any, Any]],
) -> None:
    """Not in the error, its traceback with all locals, the store, or any line of the log."""
    caplog.set_level(logging.DEBUG)
    try:
        async with opened(await trouble(guarded), timeout=TIMEOUT) as store:
            error = await failure_of(store, a)
    finally:
        guarded.thaw()
    _assert_discreet(error, repr(store), str(vars(store)), caplog.text)


async def test_a_server_that_repeats_the_password_is_cut_short(servers: ModuleType, a: Deployment) -> None:
    """A server that does not know AUTH repeats its arguments in the error."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            words = data.split(b"\r\n")
            if b"AUTH" in words or b"HELLO" in words:
                arguments = " ".join(f"'{word.decode()}'" for word in words[3::2])
                writer.write(
                    f"-ERR unknown command 'AUTH', with args beginning with: {arguments}\r\n".encode()
                )
            else:
                writer.write(b"+OK\r\n")
        writer.close()

    assert "unknown command" in await failure_before(refuse, "redis", a)
