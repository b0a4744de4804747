from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from llm_router.records.redis import RedisRecords


class _Hanging:
    """A client that never answers, and fails when it is given up."""

    async def execute_command(self, *args: Any) -> Any:
        await asyncio.sleep(60)


async def test_a_call_that_fails_after_its_caller_has_left_is_not_reported() -> None:
    """The event loop has no exception to complain of that nobody retrieved."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    records = RedisRecords(_Hanging(), timeout=0.02)  # type: ignore[arg-type]  # as much of one as it needs
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await records.get("space", "name")
    await records.aclose()
    gc.collect()
    assert not complaints
