"""Stores by their URLs: which are opened, and what is said about the others."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import ConfigError, Demand, MemoryStore, RateLimitStore, open_store
from llm_router.stores.sqlite import SQLiteStore
from llm_router.stores.urls import default_store_url, file_problem, prepare_file, sqlite_path
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools


ODD_NAMES = ("plain", "a space", "a#b", "a?b=c", "100%", "%23", "a%20b", "a+b", "a&b", "Zoë", "[x]", "a:b@c")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "MemoryStore(0 models, 0 reservations)"),
        ("redis://host", "RedisStore('host:6379/0', namespace='llm_router')"),
        ("REDIS://host:1/2", "RedisStore('host:1/2', namespace='llm_router')"),
        ("redis://u:p%23%3F@host?socket_timeout=0.5", "RedisStore('host:6379/0', namespace='llm_router')"),
        ("redis://[::1]:6380/0", "RedisStore('::1:6380/0', namespace='llm_router')"),
        ("rediss://host/1", "RedisStore('host:6379/1', namespace='llm_router')"),
        ("redis://host?shards=4", "RedisStore('host:6379/0', namespace='llm_router', shards=4)"),
        ("unix:///run/redis.sock?db=3", "RedisStore('/run/redis.sock?db=3', namespace='llm_router')"),
        ("unix://:p@/run/redis.sock", "RedisStore('/run/redis.sock?db=0', namespace='llm_router')"),
        ("sqlite:////tmp/a%20b/state.sqlite3", "SQLiteStore('/tmp/a b/state.sqlite3')"),
    ],
)
def test_a_store_is_opened(url: str, shown: str) -> None:
    """A complete URL opens its store, without connecting."""
    assert repr(open_store(url)) == shown


def _refusal(url: str) -> str:
    try:
        store = open_store(url)
    except ConfigError as error:
        return str(error) if error.__cause__ is None else f"{error.__cause__!r} is in its traceback"
    return f"{store!r} is opened"


WRONG_URLS = [
    ("", "no store has the URL scheme ''"),
    ("state.sqlite3", "no store has the URL scheme ''"),
    ("http://hunter2", "no store has the URL scheme 'http'"),
    ("postgres://u:hunter2@host/db", "no store has the URL scheme 'postgres'"),
    ("redis:/host", "lacks the slashes: write redis://"),
    ("sqlite:state.sqlite3", "lacks the slashes: write sqlite://"),
    ("memory://x", "memory:// takes nothing after it"),
    ("memory:///", "memory:// takes nothing after it"),
    ("memory://?ttl=5", "memory:// takes nothing after it"),
    ("redis://", "names no host: write redis://host:6379"),
    ("redis:///0", "names no host"),
    ("redis://:6379/0", "names no host"),
    ("rediss://u:hunter2@:6379", "names no host: write rediss://host:6379"),
    ("redis+cluster://", "names no host: write redis+cluster://host:6379"),
    ("redis://ho st", "names no host"),
    ("redis://host:port", "a port that is a number"),
    ("redis://host:99999", "a port that is a number"),
    ("redis://host:-1", "a port that is a number"),
    ("redis://host:0", "must be from 1 to 65535"),
    ("redis://[::1", "cannot be read"),
    ("redis://host\n", "cannot be read"),
    ("redis://ho\tst", "cannot be read"),
    ("redis://host/zero", "cannot be understood"),
    ("redis://host/0/1", "cannot be understood"),
    ("redis://host?db=x", "cannot be understood"),
    ("redis://host?hunter=2", "check its options (hunter)"),
    ("redis://host?ssl_cert_reqs=none", "check its options (ssl_cert_reqs)"),
    ("rediss://host?ssl_cert_reqs=hunter2", "check its options (ssl_cert_reqs)"),
    ("rediss://host?ssl_ca_certs=/hunter2", "ssl_ca_certs in the URL of the Redis store names no file"),
    ("redis://host?socket_timeout=nan", "socket_timeout in the URL of the Redis store must be"),
    ("redis://host?socket_connect_timeout=-1", "must be a finite number of 0 or more"),
    ("redis://host?health_check_interval=inf", "must be a finite number of 0 or more"),
    ("redis://host?shards=0", "shards must be a whole number from 1 to 256"),
    ("redis://host?shards=many", "shards must be a whole number from 1 to 256"),
    ("redis://u:pass?hunter2@host/0", "a port that is a number"),
    ("redis://pass?hunter2@host/0", "cut by a ? or a #: in a password, write %3F and %23"),
    ("redis://host#hunter2", "cut by a ? or a #"),
    ("redis+cluster://host/3", "redis-py cannot use the URL"),
    ("unix://", "names no socket"),
    ("unix:///", "names no socket"),
    ("unix://relative/redis.sock", "names no socket: write unix:///path/of/the/socket"),
    ("sqlite://", "names no file: write sqlite:///relative/path or sqlite:////absolute/path"),
    ("sqlite:///", "names no file"),
    ("sqlite:////", "names no file"),
    ("sqlite://state.sqlite3", "names no file"),
    ("sqlite://u:hunter2@host/state", "names no file"),
    ("sqlite:////tmp/folder/", "names no file"),
    ("sqlite:////tmp/a%00b", "names no file"),
    ("sqlite:////tmp", "names a directory, '/tmp'"),
    ("sqlite:///:memory:", "write memory://"),
    ("sqlite:///~/state.sqlite3", "begins with ~, which is not expanded"),
    ("sqlite:////tmp/x?mode=ro", "write ? as %3F and # as %23"),
    ("sqlite:////tmp/a#b", "write ? as %3F and # as %23"),
]


def test_a_url_that_cannot_be_used() -> None:
    """A URL that is incomplete or wrong is refused with the remedy, and no part of a password is shown."""
    refusals = [(url, words, _refusal(url)) for url, words in WRONG_URLS]
    assert [each for each in refusals if each[1] not in each[2] or "hunter2" in each[2]] == []


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_the_state_directory_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools: Pools, name: str
) -> None:
    """No character of the state directory's path cuts or changes the path of the file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / name))
    url = default_store_url()
    path = tmp_path / name / "llm_router" / "state.sqlite3"
    assert sqlite_path(url) == path
    store = open_store(url)
    try:
        decision = await store.reserve("r", [pools.one()], Demand(), 60)
    finally:
        await store.aclose()
    assert decision.deployment is not None
    assert path.is_file()
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 - names as they are


async def test_a_path_that_is_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may consist of any bytes."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    monkeypatch.setenv("XDG_STATE_HOME", folder)
    assert str(sqlite_path(default_store_url())) == f"{folder}/llm_router/state.sqlite3"


def test_a_relative_path_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path after three slashes is relative."""
    monkeypatch.chdir(tmp_path)
    assert repr(open_store("sqlite:///state.sqlite3")) == repr(SQLiteStore(tmp_path / "state.sqlite3"))
    assert sqlite_path("sqlite:///state.sqlite3") == Path("state.sqlite3")
    assert sqlite_path("memory://") is None


def test_a_file_that_can_be_written(tmp_path: Path) -> None:
    """A file that exists or can be made is fine, and looking for it makes nothing."""
    assert file_problem("memory://") is None
    assert file_problem(f"sqlite:///{tmp_path}/a/b/state.sqlite3") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "state.sqlite3").touch()
    assert file_problem(f"sqlite:///{tmp_path}/state.sqlite3") is None


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing in the way is named."""
    (tmp_path / "file").touch()
    problem = file_problem(f"sqlite:///{tmp_path}/file/llm_router/state.sqlite3")
    assert problem == f"{str(tmp_path / 'file')!r} is not a directory"
    (tmp_path / "broken").symlink_to("nowhere")
    problem = file_problem(f"sqlite:///{tmp_path}/broken/state.sqlite3")
    assert problem == f"{str(tmp_path / 'broken')!r} is not a directory"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    problem = file_problem(f"sqlite:///{tmp_path}/folder/state.sqlite3")
    assert problem == f"the directory {str(tmp_path)!r} cannot be written"
    problem = file_problem(f"sqlite:///{tmp_path}/file")
    assert problem == f"{str(tmp_path / 'file')!r} cannot be read and written"


def test_a_file_that_permissions_allow_but_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making its directory tells, and the file itself is left for the store to make."""
    url = f"sqlite:///{tmp_path}/a/b/state.sqlite3"
    assert prepare_file(url) is None
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert prepare_file("memory://") is None
    assert "cannot be made: " in str(prepare_file(f"sqlite:///{tmp_path}/{'n' * 300}/state.sqlite3"))
    assert "can be made in " in str(prepare_file(f"sqlite:///{tmp_path}/{'n' * 300}"))
    (tmp_path / "notes.txt").write_text("not a database")
    assert "is not an SQLite database" in str(prepare_file(f"sqlite:///{tmp_path}/notes.txt"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for place, words in (("pathlib.Path.mkdir", "cannot be made"), ("tempfile.TemporaryFile", "can be made")):
        with monkeypatch.context() as patch:
            patch.setattr(place, refuse)
            problem = prepare_file(url)
        assert problem is not None
        assert words in problem
        assert "Read-only" in problem


@pytest.mark.parametrize("answer", ["raises", "relative"])
def test_without_a_home_directory_it_is_said_what_to_set(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """As in a container whose user has none; some versions of platformdirs raise, others do not."""

    def state_path(_: str) -> Path:
        if answer == "raises":
            raise RuntimeError("no home")
        return Path("~/.local/state/llm_router")

    monkeypatch.setattr("platformdirs.user_state_path", state_path)
    with pytest.raises(ConfigError, match="set HOME or XDG_STATE_HOME, or LLM_ROUTER_STORE"):
        default_store_url()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_memory_store_warns_before_it_spends(clock: ManualClock, pools: Pools) -> None:
    """The first call of a child is what warns, though it comes at once; its quota is not taken before."""
    store, deployment = MemoryStore(clock=clock), pools.one()
    asyncio.run(store.reserve("parent", [deployment], Demand(), 60))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        log = logging.getLogger("llm_router")
        log.handlers = [_Pipe(store, write)]
        for name in ("one", "two"):
            asyncio.run(store.reserve(name, [deployment], Demand(), 60))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(child, 0)
    assert len(lines) == 1
    before, _, warning = lines[0].partition(": ")
    assert before == "MemoryStore(1 models, 1 reservations)"
    assert warning.startswith("a memory store is used by a forked process")


class _Pipe(logging.Handler):
    """A handler that writes what is logged, and what the store holds then, into a pipe."""

    def __init__(self, store: RateLimitStore, descriptor: Any) -> None:
        super().__init__()
        self._store = store
        self._descriptor = descriptor

    def emit(self, record: Any) -> None:
        os.write(self._descriptor, f"{self._store!r}: {record.getMessage()}\n".encode())
