"""The real google-genai SDK, on each of its HTTP backends, pointed at an emulator."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest
from google import genai
from google.genai import types
from google.genai.models import AsyncModels

from llm_router.emulator import GeminiEmulator
from llm_router.testing.clock import ManualClock

KEY = "AIza-test-key"

OpenSDK = Callable[..., AbstractAsyncContextManager[AsyncModels]]


@pytest.fixture(params=["aiohttp", pytest.param("httpx2", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The SDK's asynchronous HTTP backend."""
    monkeypatch.setattr("google.genai._api_client.has_aiohttp", request.param == "aiohttp")
    monkeypatch.setenv("GOOGLE_GENAI_HTTP_CLIENT", "httpx2")
    return str(request.param)


@pytest.fixture
def sdk(backend: str) -> OpenSDK:
    """Return a context manager that opens the SDK on an emulator and yields its ``aio.models``."""

    @contextlib.asynccontextmanager
    async def open_client(
        emulator: GeminiEmulator, key: str = KEY, api_version: str = "v1beta"
    ) -> AsyncIterator[AsyncModels]:
        options = types.HttpOptions(
            base_url=emulator.url,
            api_version=api_version,
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        async with contextlib.AsyncExitStack() as stack:
            if backend == "aiohttp":
                # A session made by the SDK itself raises a deprecation warning.
                options.aiohttp_client = await stack.enter_async_context(aiohttp.ClientSession())
            client = genai.Client(api_key=key, vertexai=False, http_options=options)
            stack.callback(client.close)
            await stack.enter_async_context(client.aio)
            yield client.aio.models

    return open_client


@pytest.fixture
def clock() -> ManualClock:
    """A clock at noon UTC, at the start of a minute and far from midnight in Los Angeles."""
    return ManualClock(1_800_014_400.0)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client, to see what the SDK does not show."""
    async with aiohttp.ClientSession() as session:
        yield session
