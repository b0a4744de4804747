"""What the record stores do with files, servers, loops and processes."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import aclosing, closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from llm_router.errors import ConfigError, StoreCorruptError, StoreUnavailableError
from llm_router.records import Bounds, MemoryRecords, open_records
from llm_router.records.redis import RedisRecords
from llm_router.records.sqlite import SQLiteRecords
from llm_router.stores.sqlite import SQLiteStore
from llm_router.testing import ManualClock

if TYPE_CHECKING:
    from tests.stores.servers import RedisServer

_ADD = """
import asyncio, sys
from llm_router.records import open_records

async def main():
    store = open_records(sys.argv[1])
    for _ in range(10):
        await store.add("use", "all", {"requests": 1}, ttl=60)
        try:
            found = await store.get("space", "name")
            await store.put("space", "name", b"x", ttl=60, version=found.version if found else 0)
        except Exception as error:
            assert type(error).__name__ == "RecordConflictError", error
    await store.aclose()

asyncio.run(main())
"""


async def test_urls(tmp_path: Path) -> None:
    """The URL of the quotas opens the records beside them; a wrong one is refused as there."""
    assert isinstance(open_records("memory://"), MemoryRecords)
    assert isinstance(open_records("redis://user:word@host:1/0"), RedisRecords)
    assert "word" not in repr(open_records("redis://user:word@host:1/0"))
    for name in ("state.sqlite3", "state.records.sqlite3"):
        assert repr(open_records(f"sqlite:///{tmp_path}/{name}")).endswith("/state.records.sqlite3')")
    for url in ("ftp://host", "redis://", "sqlite:///", "memory://x"):
        with pytest.raises(ConfigError):
            open_records(url)


async def test_a_file_is_its_users_own(tmp_path: Path) -> None:
    """The file is readable by its user only, is opened anew when it was deleted, and lies beside quotas."""
    url = f"sqlite:///{tmp_path}/state.db"
    async with aclosing(open_records(url)) as store, aclosing(SQLiteStore(tmp_path / "state.db")) as quotas:
        await quotas.snapshot([])
        await store.put("space", "name", b"x", ttl=60)
        path = tmp_path / "state.records.db"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.unlink()
        assert await store.get("space", "name") is None
        await store.put("space", "name", b"y", ttl=60)
    async with aclosing(open_records(url)) as store:
        assert await store.names("space") == ["name"]


async def test_a_new_file_is_made_once(tmp_path: Path) -> None:
    """Of stores that find no file at the same moment, each uses the one that the first of them makes."""
    for place in range(20):
        path = tmp_path / str(place) / "records.db"
        async with aclosing(SQLiteRecords(path)) as one, aclosing(SQLiteRecords(path)) as two:
            await asyncio.gather(
                one.add("use", "all", {"requests": 1}, ttl=60), two.add("use", "all", {"requests": 1}, ttl=60)
            )
            assert await one.counts("use") == await two.counts("use") == {"all": {"requests": 2}}


async def test_foreign_files_stay_as_they_are(tmp_path: Path) -> None:
    """What is no file of records is named and left alone; a newer one, too."""
    text, other, newer = tmp_path / "text.db", tmp_path / "other.db", tmp_path / "newer.db"
    text.write_text("a letter to somebody" * 100)
    async with aclosing(SQLiteStore(other)) as quotas:
        await quotas.snapshot([])
    async with aclosing(SQLiteRecords(newer)) as store:
        await store.put("space", "name", b"x", ttl=60)
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    async with aclosing(SQLiteRecords(tmp_path / "odd.db")) as store:
        await store.put("space", "name", b"x", ttl=60)
        await store.add("space", "name", {"x": 1}, ttl=60)
        with closing(sqlite3.connect(tmp_path / "odd.db", isolation_level=None)) as connection:
            connection.execute("UPDATE records SET data = 5")
        for call in (
            store.get("space", "name"),
            store.counts("space"),
            store.add("space", "name", {"x": 1}, ttl=1),
        ):
            with pytest.raises(StoreCorruptError, match="damaged"):
                await call
    for path, message in ((text, "damaged"), (other, "another application"), (newer, "newer version")):
        before = path.read_bytes()
        async with aclosing(SQLiteRecords(path)) as store:
            with pytest.raises(StoreCorruptError, match=message):
                await store.get("space", "name")
            with pytest.raises(StoreCorruptError, match=message):
                await store.put("space", "name", b"x", ttl=60)
        assert path.read_bytes() == before


async def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """A directory that is a file, and a lock that another program holds, are errors of the store."""
    (tmp_path / "file").touch()
    async with aclosing(SQLiteRecords(tmp_path / "file" / "records.db")) as store:
        with pytest.raises(StoreUnavailableError, match="check the path"):
            await store.get("space", "name")
    path = tmp_path / "records.db"
    async with aclosing(SQLiteRecords(path, timeout=0.05)) as store:
        await store.put("space", "name", b"x", ttl=60)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="another program holds it locked"):
                await store.put("space", "name", b"y", ttl=60)
            assert await store.names("space") == ["name"]
        await store.put("space", "name", b"y", ttl=60)


@pytest.mark.slow
def test_a_store_that_is_dropped_ends_its_thread(tmp_path: Path) -> None:
    """Several loops may use one store; left unclosed, it closes its file when it is collected."""
    store = SQLiteRecords(tmp_path / "records.db")
    for number in range(2):
        asyncio.run(_put(store, number))
    thread = store._worker._thread  # type: ignore[union-attr]
    del store
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert not (tmp_path / "records.db-wal").exists()


async def _put(store: SQLiteRecords | RedisRecords, number: int) -> None:
    await store.put("space", str(number), b"", ttl=60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_processes_share(kind: str, tmp_path: Path, servers_module: ModuleType) -> None:
    """Processes that begin at once on a new file, or on a server, lose no count."""
    url = f"sqlite:///{tmp_path}/state.db"
    if kind == "server":
        url = servers_module.shared_server(next(iter(servers_module.find_servers()))).url
    running = [subprocess.Popen([sys.executable, "-c", _ADD, url]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert asyncio.run(_total(url)) == {"requests": 20}


async def _total(url: str) -> object:
    async with aclosing(open_records(url)) as store:
        found = (await store.counts("use"))["all"]
        await store.delete("use", "all")
        return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_opens_the_file_for_itself(tmp_path: Path) -> None:
    """Parent and child go on with the same store."""
    async with aclosing(SQLiteRecords(tmp_path / "records.db")) as store:
        await store.add("use", "all", {"requests": 1}, ttl=60)
        child = os.fork()
        if not child:
            code = 1
            try:
                asyncio.set_event_loop(None)
                asyncio._set_running_loop(None)
                loop = asyncio.new_event_loop()
                loop.run_until_complete(store.add("use", "all", {"requests": 1}, ttl=60))
                loop.run_until_complete(store.aclose())
                code = 0
            finally:
                os._exit(code)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert await store.add("use", "all", {"requests": 1}, ttl=60) == {"requests": 3}


def test_the_servers_own_clock(redis_server: RedisServer) -> None:
    """Without a clock the server's counts; keys end by themselves; each loop has its own connections."""
    store = RedisRecords(f"{redis_server.url}?decode_responses=True&socket_keepalive=True")
    asyncio.run(store.put("bytes", "name", b"\xff", ttl=60))
    found = asyncio.run(store.get("bytes", "name"))
    assert found is not None
    assert found.data == b"\xff"
    for number in range(2):
        asyncio.run(_put(store, number))
    with redis_server.client() as client:
        now = int(client.time()[0])
        [record] = [client.zrange(key, 0, 0, withscores=True) for key in client.keys("*:space}:ends")]
        assert now + 50 < record[0][1] / 1e6 < now + 61
        assert all(0 < client.pttl(key) <= 62_000 for key in client.keys("*"))
        assert len(client.client_list()) == 1


@pytest.mark.parametrize("lost", ["data", "order", "ends", "totals"])
async def test_a_key_that_the_server_evicted(
    lost: str, servers_module: ModuleType, clock: ManualClock
) -> None:
    """What is left of a space is forgotten, too, and the space is used again."""
    server = servers_module.shared_server(next(iter(servers_module.find_servers())))
    bounds = {"space": Bounds(records=10, size=100)}
    async with aclosing(RedisRecords(server.url, clock=clock, bounds=bounds)) as store:
        version = await store.put("space", "old", b"x" * 60, ttl=60)
        with server.client() as client:
            client.delete(f"{{llm_router:records:1:space}}:{lost}")
        assert (await store.get("space", "old") is None) == (lost != "totals")
        assert await store.put("space", "name", b"x" * 60, ttl=60) >= version
        assert await store.names("space") == ["name"]
        assert await store.get("space", "old") is None
        await store.put("space", "next", b"", ttl=60)
        assert await store.names("space") == ["next", "name"]


async def test_a_server_that_fails(redis_server: RedisServer) -> None:
    """What the client raises becomes a StoreError, which shows no password; a foreign key is named."""
    url = redis_server.url.replace("redis://", "redis://user:word@")
    async with aclosing(RedisRecords(url, timeout=1)) as store:
        with pytest.raises(StoreUnavailableError, match="refused the login") as caught:
            await store.get("space", "name")
    assert caught.value.__context__ is None
    async with aclosing(RedisRecords(redis_server.url, timeout=0.2)) as store:
        with redis_server.client() as client:
            client.set("{llm_router:records:1:space}:data", "x")
        with pytest.raises(StoreCorruptError, match="holds something else"):
            await store.put("space", "name", b"x", ttl=60)
        redis_server.freeze()
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.2 s"):
            await store.get("other", "name")
        redis_server.thaw()
        assert await store.get("other", "name") is None
        redis_server.kill()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await store.get("other", "name")
