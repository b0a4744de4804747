"""Tests of a program that uses the router: with a fake provider, a clock that you move, and the emulator.

Run them with ``pytest examples/testing_your_program.py``; they need pytest and pytest-asyncio, and neither an
API key nor a network. Your own program can be tested in the same way.
"""
# ruff: noqa: S101 - pytest's tests are made of asserts

from __future__ import annotations

import asyncio

import pytest

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import Fault
from llm_router.testing import FakeProvider, GeminiEmulator, ManualClock

pytestmark = pytest.mark.asyncio


async def summarise(router: Router, text: str) -> str:
    """Return a summary of a text, or a hint when to ask again: the program under test."""
    response = await router.send(f"Summarise: {text}", workload="light", max_wait=120)
    if response.success:
        return response.text
    return "No summary." if response.retry_after is None else f"Try again in {response.retry_after:.0f} s."


def deployment(key_id: str, rpm: int = 1) -> Deployment:
    """Return a deployment on a new key with quota for ``rpm`` requests a minute."""
    key = Key(key_id, Secret(f"any-text-will-do-{key_id}"))
    return Deployment(key, "gemini-3.5-flash-lite", "light", quotas=(Quota(Metric.RPM, rpm),))


async def test_the_answer_is_returned() -> None:
    """A fake provider gives the answers that the test wants, and records what it was asked."""
    provider = FakeProvider(["All is well."])
    async with Router([deployment("a")], provider=provider) as router:
        assert await summarise(router, "a long report") == "All is well."
    assert provider.calls[0].request.contents == "Summarise: a long report"


async def test_the_program_waits_for_quota() -> None:
    """With a manual clock, a minute passes when the test says so, and takes no time."""
    clock = ManualClock()
    async with Router([deployment("a")], provider=FakeProvider(clock=clock), clock=clock) as router:
        await summarise(router, "the first text")
        second = asyncio.create_task(summarise(router, "the second text"))
        await clock.advance(59)
        assert not second.done()
        await clock.advance(2)  # a minute after the first request, and a little more: the guard
        assert await second == "echo: Summarise: the second text"


async def test_another_key_answers_if_one_is_refused() -> None:
    """The emulator is called over HTTP by google-genai, and fails as the test asks."""
    async with GeminiEmulator() as gemini:
        # A router made by Router.from_config() takes the URL from GOOGLE_GEMINI_BASE_URL.
        async with Router([deployment("a"), deployment("b")], base_url=gemini.url) as router:
            gemini.inject(Fault.bare_429(), times=1)
            assert "Summarise: a long report" in await summarise(router, "a long report")
        assert (gemini.refused, gemini.accepted) == (1, 1)
