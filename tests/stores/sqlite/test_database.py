"""Only files of this library are opened; all others stay as they were, byte for byte."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Deployment, RateLimitStore
from llm_router.domain.quota import Demand
from llm_router.errors import StoreCorruptError, StoreUnavailableError
from llm_router.stores.sqlite import SQLiteStore
from llm_router.stores.sqlite.database import APPLICATION_ID, SCHEMA_VERSION

if TYPE_CHECKING:
    from tests.conftest import Pools


def foreign_database(path: Path, *, application_id: int = 0, user_version: int = 0) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA application_id = {application_id}; PRAGMA user_version = {user_version};"
            "CREATE TABLE foreign_table (data TEXT); INSERT INTO foreign_table VALUES ('data');"
        )


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("dear diary " * 1000), "is not an SQLite database"),
    "short": (lambda path: path.write_bytes(b"SQLite format 3\0"), "is not an SQLite database"),
    "nameless": (foreign_database, "another application"),
    "named": (lambda path: foreign_database(path, application_id=42), "another application"),
    "newer": (
        lambda path: foreign_database(path, application_id=APPLICATION_ID, user_version=SCHEMA_VERSION + 1),
        "newer version",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
async def test_a_file_that_is_not_ours_is_left_as_it_was(
    kind: str, path: Path, store: SQLiteStore, pools: Pools
) -> None:
    """The error says which file and what it is; nothing in the file or beside it changes."""
    make, words = FOREIGN[kind]
    make(path)
    before = path.read_bytes()
    with pytest.raises(StoreCorruptError, match=words) as raised:
        await store.reserve("id", [pools.one()], Demand(), 60.0)
    await store.aclose()
    assert repr(str(path)) in str(raised.value)
    assert "left as it is" in str(raised.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


async def test_when_the_foreign_file_is_gone_the_store_works(
    path: Path, store: SQLiteStore, pools: Pools
) -> None:
    """Only the file was in the way: no restart is needed."""
    path.write_text("dear diary")
    with pytest.raises(StoreCorruptError):
        await store.snapshot([pools.one()])
    path.unlink()
    assert (await store.reserve("id", [pools.one()], Demand(), 60.0)).deployment is not None


async def test_a_damaged_file_is_reported_and_left_alone(
    path: Path, store: SQLiteStore, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """If one of our files contains pages of rubbish, nothing is written to it."""
    await store.reserve("id", [pools.one()], Demand(), 60.0)
    await store.aclose()
    sound = path.read_bytes()
    path.write_bytes(sound[:100] + b"\xff" * (len(sound) - 100))
    before = path.read_bytes()
    damaged = open_store()
    with pytest.raises(StoreCorruptError, match=r"damaged.*left as it is.*move it away"):
        await damaged.reserve("other", [pools.one()], Demand(), 60.0)
    await damaged.aclose()
    assert path.read_bytes() == before


NONSENSE = [
    "'nonsense'",
    "x'00'",
    "zeroblob(80)",
    "x'000000000000f0bf'",
    "x'000000000000f07f'",
]  # -1, infinity


@pytest.mark.parametrize(
    "sql",
    [
        *(f"UPDATE journal SET ledgers = {nonsense}" for nonsense in NONSENSE),
        *(f"UPDATE journal SET taken = {nonsense}" for nonsense in NONSENSE),
        "UPDATE journal SET opened = '1'",
        "UPDATE journal SET opened = '['",
        "UPDATE journal SET closed = '[[]]'",
        "DROP TABLE journal",
        "DROP TABLE ledgers",
    ],
)
async def test_rows_that_make_no_sense_are_reported(
    sql: object,
    store: SQLiteStore,
    query: Callable[..., list[Any]],
    open_store: Callable[..., SQLiteStore],
    pools: Pools,
) -> None:
    """A file that was edited is reported as damaged, instead of causing an obscure error."""
    await store.reserve("id", [pools.one(key_id="key")], Demand(), 60.0)
    await store.aclose()
    query(sql)
    await _assert_damaged(open_store(), pools.one(key_id="key"))


@pytest.mark.parametrize(
    "change",
    [
        *(f"kinds = 11, state = {nonsense}" for nonsense in NONSENSE),
        "kinds = 19, state = zeroblob(8)",
        "kinds = -1, state = zeroblob(8)",
        'terms = \'[["rph", "rolling", 1, 60, 0, null, "UTC", 1]]\'',
    ],
)
async def test_ledgers_that_make_no_sense_are_reported(
    change: object,
    store: SQLiteStore,
    query: Callable[..., list[Any]],
    open_store: Callable[..., SQLiteStore],
    pools: Pools,
) -> None:
    """The same for rows that the journal no longer contains."""
    await store.reserve("id", [pools.one(key_id="key")], Demand(), 60.0)
    await store.aclose()
    query("DELETE FROM journal")
    query(f"UPDATE ledgers SET {change}")
    await _assert_damaged(open_store(), pools.one(key_id="key"))


async def _assert_damaged(store: RateLimitStore, deployment: Deployment) -> None:
    with pytest.raises(StoreCorruptError, match="damaged"):
        await asyncio.gather(store.release("id"), store.snapshot([deployment]))


async def test_a_new_file_is_private_and_recognisable_from_the_start(
    path: Path, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """Only the owner may read it, and its header identifies it before any checkpoint."""
    inner = path.parent / "new" / "state.db"
    await open_store(inner).reserve("id", [pools.one()], Demand(), 60.0)
    header = inner.read_bytes()[:100]
    assert int.from_bytes(header[60:64], "big") == SCHEMA_VERSION
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert inner.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in inner.parent.iterdir()} == {0o600}


async def test_an_empty_file_is_treated_as_a_new_one(path: Path, store: SQLiteStore, pools: Pools) -> None:
    """An empty file holds nothing that could be lost."""
    path.touch()
    assert (await store.reserve("id", [pools.one()], Demand(), 60.0)).deployment is not None


async def test_a_path_that_cannot_be_used_is_reported(
    path: Path, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """The error names the path and the reason."""
    path.write_text("a file, not a directory")
    with pytest.raises(StoreUnavailableError, match=r"inner\.db'.*[Nn]ot a directory"):
        await open_store(path / "inner.db").snapshot([pools.one()])
    with pytest.raises(StoreUnavailableError, match=r"[Ii]s a directory"):
        await open_store(path.parent).snapshot([pools.one()])


@pytest.mark.slow
def test_a_read_only_file_is_reported(spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """Neither a read-only file nor a read-only directory causes a crash or a hang."""
    directory = Path(tempfile.mkdtemp())  # not below tmp_path, which other users may not enter
    path = directory / "state.db"
    spawn("leave-open", path).communicate()
    for file in directory.iterdir():
        file.chmod(0o444)
    directory.chmod(0o555)
    answer, _ = spawn("readonly", path).communicate()
    directory.chmod(0o755)
    shutil.rmtree(directory)
    assert answer.startswith("StoreUnavailableError")
    assert "Permission denied" in answer


async def test_the_store_works_in_wal_mode(
    store: SQLiteStore, query: Callable[..., list[Any]], pools: Pools
) -> None:
    """Readers such as a shell never block a writer."""
    await store.snapshot([pools.one()])
    assert query("PRAGMA journal_mode") == [("wal",)]


_TRY_TO_LOCK = """
import fcntl, sys
with open(sys.argv[1], "rb+") as file:  # the bytes that readers lock
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)
    except OSError:
        print("taken")
"""


@pytest.mark.slow
async def test_checking_the_file_keeps_its_locks(
    path: Path, store: SQLiteStore, open_store: Callable[..., SQLiteStore], pools: Pools
) -> None:
    """Neither a second store of this process nor a checkpoint releases the lock that protects the WAL."""
    for n in range(210):  # enough for a checkpoint
        await store.reserve(f"id-{n}", [pools.one()], Demand(), 60.0)
    second = open_store()
    await second.reserve("other", [pools.one()], Demand(), 60.0)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _TRY_TO_LOCK, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert (await child.communicate())[0].strip() == b"taken"
