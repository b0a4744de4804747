"""Fixtures of the tests of the SQLite store."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import llm_router
from llm_router.stores.sqlite import SQLiteStore, journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llm_router.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the database file."""
    return tmp_path / "state.db"


@pytest.fixture
async def open_store(path: Path, clock: ManualClock) -> AsyncIterator[Callable[..., SQLiteStore]]:
    """Opens stores on one file, and closes them at the end."""
    stores = []

    def open_one(where: Path = path, **options) -> SQLiteStore:
        stores.append(SQLiteStore(where, **({"clock": clock} | options)))
        return stores[-1]

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.fixture
def store(open_store: Callable[..., SQLiteStore]) -> SQLiteStore:
    """A store on the file."""
    return open_store()


@pytest.fixture
def query(path: Path) -> Callable[..., list]:
    """Runs SQL on the file, as any other program might."""

    def run(sql: str, *parameters) -> list:
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(sql, parameters).fetchall()

    return run


@pytest.fixture
def open_reservations(query: Callable[..., list]) -> Callable[[], set[str]]:
    """Returns the ids of open reservations in the file."""

    def read() -> set[str]:
        found: set[str] = set()
        for opened, closed in query("SELECT opened, closed FROM journal ORDER BY number"):
            found |= set(json.loads(opened))
            found -= set(json.loads(closed))
        return found

    return read


@pytest.fixture
def short_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the journal too long as soon as it has two rows."""
    monkeypatch.setattr(journal, "_MAX_BYTES", 0)
    monkeypatch.setattr(journal, "_BYTES_AT_ONCE", 1000)


@pytest.fixture
def spawn() -> Callable[..., subprocess.Popen]:
    """Starts ``child.py``, which is beside this file, in a separate Python process."""
    children = []

    def start(*arguments) -> subprocess.Popen:
        script = Path(__file__).with_name("child.py")
        environment = os.environ | {"PYTHONPATH": str(Path(llm_router.__file__).parents[1])}
        command = [sys.executable, "-W", "error", str(script), *map(str, arguments)]
        children.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
            )
        )
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()
