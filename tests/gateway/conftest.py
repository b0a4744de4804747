"""A gateway on a free port, with an emulator behind it: one for each module of tests."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import attrs
import pytest
import uvicorn

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.emulator import GeminiEmulator
from llm_router.emulator.responding import echo
from llm_router.gateway import Gateway
from llm_router.gateway.callers import Callers
from llm_router.gateway.server import listen, server_config
from llm_router.gateway.tokens import TokenFile

KEYS = {"AIzaOfAlpha": "alpha", "AIzaOfBeta": "beta"}
MODELS = {"flash": 10_000, "lite": 10_000, "tiny": 1, "small": 1, "spare": 10_000, "text-embedding-9": 10_000}


def answer(model: str, body: Mapping[str, Any]) -> Any:
    """Echo the prompt, but answer ``long:4000`` with so many characters."""
    text = str(echo(model, body))
    _, asks, count = text.partition("long:")
    return "x" * int(count) if asks else echo(model, body)


@attrs.frozen
class Served:
    """What the tests of a module talk to."""

    url: str
    emulator: GeminiEmulator
    gateway: Gateway
    server: uvicorn.Server

    def ask(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Return what the router answers, on its own loop."""

        async def ask() -> Any:
            return await work()

        router = self.gateway.router
        if router.loop is None:  # nothing has asked it anything yet
            urllib.request.urlopen(f"{self.url}/readyz", timeout=10).close()
        assert router.loop is not None
        return asyncio.run_coroutine_threadsafe(ask(), router.loop).result(5)

    def used(self, model: str | None = "flash") -> int:
        """Return how many requests of a model are counted, or of all."""
        statuses = self.ask(self.gateway.router.get_all_key_statuses)
        counts = [each["rpm_usage"] for each in statuses if model in {each["model"], None}]
        return sum(int(each.partition("/")[0]) for each in counts)

    def lift(self) -> None:
        """End all cooldowns."""
        for project in KEYS.values():
            self.ask(partial(self.gateway.router.keys.lift, project))

    def until_idle(self) -> None:
        """Wait until no request is under way."""
        give_up = time.monotonic() + 10
        while self.server.server_state.tasks:
            assert time.monotonic() < give_up, self.server.server_state.tasks
            time.sleep(0.002)


def serve(make: Callable[[Router], Any], emulator: GeminiEmulator) -> Iterator[Served]:
    """Serve what ``make`` makes of a router, in a thread."""
    pool = [
        Deployment(
            Key(project, Secret(secret)),
            model,
            "light" if model == "lite" else "medium",
            quotas=(Quota(Metric.RPM, limit),),
        )
        for secret, project in KEYS.items()
        for model, limit in MODELS.items()
    ]
    gateway = make(Router(pool, base_url=emulator.url, base_backoff=0.001))
    for url, server in run(gateway):
        yield Served(url, emulator, gateway, server)


def run(gateway: Gateway) -> Iterator[tuple[str, uvicorn.Server]]:
    """Serve a gateway in a thread; yield its URL and its server."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(gateway))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def running() -> Callable[[Gateway], AbstractContextManager[tuple[str, uvicorn.Server]]]:
    """Provide what serves a gateway of the test's own."""
    return contextmanager(run)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Provide a gateway without tokens."""
    with GeminiEmulator(keys=KEYS, models=MODELS).run_in_thread() as emulator:
        yield from serve(lambda router: Gateway(router, max_wait=0), emulator)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, dict[str, str]]]:
    """Provide a gateway with tokens, and the tokens by name."""
    file = TokenFile(tmp_path_factory.mktemp("tokens") / "tokens.json")
    tokens = {
        "ann": file.add("ann"),
        "bob": file.add("bob"),
        "light": file.add("light", workloads=["light"], tenant="acme"),
        "flash": file.add("flash", models=["flash"]),
        "slow": file.add("slow", rpm=2),
    }
    with GeminiEmulator(keys=KEYS, models=MODELS, responder=answer).run_in_thread() as emulator:
        for served in serve(lambda each: Gateway(each, callers=Callers(file), max_wait=0), emulator):
            yield served, tokens


@pytest.fixture
def exact(guarded: tuple[Served, dict[str, str]]) -> Iterator[Any]:
    """Provide the emulator; see that in the end the router has counted what it has, and holds nothing."""
    served, _ = guarded
    before = served.used(None)
    yield served.emulator
    served.until_idle()
    assert served.used(None) - before == served.emulator.accepted
    store: Any = served.gateway.router.keys.store
    assert store._reservations == {}
    served.lift()


@pytest.fixture(autouse=True)
def _calm(request: pytest.FixtureRequest) -> Iterator[None]:
    """See that a test leaves nothing under way, and no fault behind."""
    yield
    for name in ("served", "guarded"):
        if name in request.fixturenames:
            value = request.getfixturevalue(name)
            found: Served = value[0] if isinstance(value, tuple) else value
            found.until_idle()
            found.emulator.reset()
