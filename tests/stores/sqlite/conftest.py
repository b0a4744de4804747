"""What the tests of the SQLite store share."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import llm_router
from llm_router.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llm_router.testing import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database file is to be."""
    return tmp_path / "state.db"


@pytest.fixture
async def open_store(path: Path, clock: ManualClock) -> AsyncIterator[Callable[..., SQLiteStore]]:
    """Open stores on one file, and close them in the end."""
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
    """Run SQL on the file, as any other program might."""

    def run(sql: str, *parameters) -> list:
        with closing(sqlite3.connect(path)) as connection, connection:
            return connection.execute(sql, parameters).fetchall()

    return run


@pytest.fixture
def spawn() -> Callable[..., subprocess.Popen]:
    """Start ``child.py``, which stands beside this file, in a Python of its own."""
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
