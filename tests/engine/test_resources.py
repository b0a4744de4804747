"""Which project things belong to, over restarts and while the records fail."""

from __future__ import annotations

import logging
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from llm_router import InvalidRequestError, Router
from llm_router.engine.resources import Resources
from llm_router.errors import StoreUnavailableError
from llm_router.records import MemoryRecords, Record, open_records


class Failing(MemoryRecords):
    async def get(self, space: str, name: str) -> Record | None:
        raise StoreUnavailableError("no answer")

    async def put(self, *args: Any, **kwargs: Any) -> int:
        raise StoreUnavailableError("no answer")

    async def delete(self, space: str, name: str) -> None:
        raise StoreUnavailableError("no answer")


async def test_a_restart_forgets_no_owner(tmp_path: Path, pools: Any, make_router: Any) -> None:
    """A router whose quotas are in a file finds what another one has made; no name is in the file."""
    url = f"sqlite:///{tmp_path}/state.db"
    async with make_router([pools.one()], store=url) as router:
        await _resources(router).remember("uploads/an-id", "alpha")
        await _resources(router).remember("files/b", "beta")
    async with make_router([pools.one()], store=url) as router:
        assert await _resources(router).projects(["uploads/an-id", "files/unknown"]) == {"alpha"}
        with pytest.raises(InvalidRequestError, match="files/b to 'beta'"):
            await _resources(router).projects(["uploads/an-id", "files/b"])
        await _resources(router).forget("files/b")
    async with aclosing(open_records(url)) as records:
        assert len(await records.names("owners")) == 1
    assert b"an-id" not in (tmp_path / "state.records.db").read_bytes()


def _resources(router: Router) -> Resources:
    return router._sender.resources


async def test_records_that_fail_are_as_those_that_forget(caplog: pytest.LogCaptureFixture) -> None:
    """A request goes anywhere then; a warning names no upload, with whose id anybody could go on."""
    resources = Resources(Failing())
    await resources.remember("uploads/an-id", "alpha")
    assert await resources.projects(["uploads/an-id"]) == frozenset()
    await resources.forget("uploads/an-id")
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "one of uploads belongs" in warning.getMessage()
    assert "an-id" not in caplog.text
