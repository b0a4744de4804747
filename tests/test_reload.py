"""A running router follows a changed configuration without losing a request or a count."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import traceback
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import (
    ConfigError,
    Deployment,
    FailureKind,
    InvalidRequestError,
    Metric,
    ProviderError,
    Quota,
    QuotaExhaustedError,
    RateLimitStore,
    Request,
    Response,
    Router,
    RouterClosedError,
    Secret,
    StoreUnavailableError,
    UnknownModelError,
    UnknownWorkloadError,
)
from llm_router.config import load_settings
from llm_router.observe import Event, Reloaded
from llm_router.stores.failover import FailoverStore
from llm_router.stores.memory import MemoryStore
from llm_router.stores.sqlite import SQLiteStore
from llm_router.testing import FakeProvider, ManualClock

if TYPE_CHECKING:
    from tests.conftest import Pools

MakeRouter = Callable[..., Router]


def with_secret(deployment: Deployment, secret: str) -> Deployment:
    """Return a deployment whose key has another secret."""
    return attrs.evolve(deployment, key=attrs.evolve(deployment.key, secret=Secret(secret)))


def with_rpm(deployment: Deployment, rpm: int) -> Deployment:
    """Return a deployment with another limit."""
    return attrs.evolve(deployment, quotas=(Quota(Metric.RPM, rpm),))


def invalid_key() -> ProviderError:
    """Return the failure of a key that is called invalid."""
    return ProviderError("API key not valid", kind=FailureKind.KEY, code=400)


# --- nothing is lost ----------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> RateLimitStore:
    """A store on the manual clock."""
    if request.param == "sqlite":
        return SQLiteStore(str(tmp_path / "state.sqlite3"), clock=clock)
    return MemoryStore(clock=clock)


class SecretsProvider(FakeProvider):
    """Notes with which secret each request was sent."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.secrets: list[str] = []

    async def generate(self, deployment: Deployment, *args: Any, **kwargs: Any) -> Any:
        self.secrets.append(deployment.key.secret.reveal())
        return await super().generate(deployment, *args, **kwargs)


async def rest(router: Router, provider: FakeProvider) -> None:
    """Let everything happen that needs no time to pass, also in a store that works in a thread."""
    quiet, calls = 0, -1
    while quiet < 3:
        await router.keys.store.snapshot(list(router.keys.pool.states)[:1])  # it answers in turn
        await asyncio.sleep(0)
        quiet = quiet + 1 if calls == len(provider.calls) else 0
        calls = len(provider.calls)


@pytest.mark.slow
async def test_a_reload_in_the_midst_of_two_thousand_requests(
    store: RateLimitStore, pools: Pools, clock: ManualClock
) -> None:
    """All are answered, no quota is broken before or after, and no key that is gone is used after it."""
    provider = SecretsProvider(clock)
    provider.delay = 7.0
    before = pools.many(24, rpm=30)
    gone, slower, faster, rotated, moved, kept = (before[n : n + 4] for n in range(0, 24, 4))
    after = [
        *pools.many(8, rpm=30),
        *(with_rpm(each, 12) for each in slower),
        *(with_rpm(each, 45) for each in faster),
        *(with_secret(each, f"new-{each.key.key_id}") for each in rotated),
        *(attrs.evolve(each, workload="heavy", priority=5) for each in moved),
        *kept,
    ]
    async with Router(before, provider=provider, clock=clock, store=store, max_wait=900.0) as router:
        sends = [asyncio.create_task(router.send(f"prompt {n}", workload="light")) for n in range(2_000)]
        for _ in range(64):
            await rest(router, provider)
            clock.shift(1.0)
        assert 0 < sum(send.done() for send in sends) < len(sends)
        waiting = (await router.health_check())["waiting"]
        assert waiting > 100
        under_way = Counter(call.key_id for call in provider.calls)
        under_way.subtract(send.result().key_id or "" for send in sends if send.done())
        for group in (gone, slower, faster, rotated, moved, kept):
            assert any(under_way[each.key.key_id] for each in group)
        report = await router.reload(after)
        reloaded = len(provider.calls)
        assert len(report.added) == 8
        assert set(report.removed) == {each.id for each in gone}
        assert set(report.changed) == {each.id for each in (*slower, *faster, *rotated, *moved)}
        while not all(send.done() for send in sends):
            await rest(router, provider)
            clock.shift(1.0)
        await rest(router, provider)
        responses: list[Response] = [send.result() for send in sends]
        assert all(response.success for response in responses)
        assert len(provider.calls) == 2_000
        statuses, sent, now = await router.get_all_key_statuses(), list(provider.calls), clock.time()
        assert (await router.health_check())["waiting"] == 0
        heavy = asyncio.create_task(router.send("x", workload="heavy"))
        while not heavy.done():
            await rest(router, provider)
            clock.shift(1.0)
        assert heavy.result().key_id in {each.key.key_id for each in moved}
    await store.aclose()
    used_after = {call.key_id for call in provider.calls[reloaded:]}
    assert used_after <= {each.key.key_id for each in after}
    assert used_after >= {each.key.key_id for each in after if each.workload == "light"}
    old = {each.key.secret.reveal() for each in (*gone, *rotated)}
    assert old.isdisjoint(provider.secrets[reloaded:])
    limits = [{d.key.key_id: d.quotas[0].limit for d in pool} for pool in (before, after)]
    calls: dict[str, list[float]] = defaultdict(list)
    for number, call in enumerate(sent):
        calls[call.key_id].append(call.at)
        recent = sum(1 for when in calls[call.key_id] if call.at - 60.0 < when)
        assert recent <= limits[number >= reloaded][call.key_id]
    # What was sent before it, and came back after it, counts as well.
    for status in statuses:
        counted = sum(1 for when in calls[status["key_id"]] if now - 60.3 < when)
        assert status["rpm_usage"].partition("/")[0] == str(counted)


# --- keys, secrets and models -------------------------------------------------------------------------


async def test_a_new_secret_is_used_by_the_next_request(
    store: RateLimitStore, pools: Pools, clock: ManualClock
) -> None:
    """It ends the quarantine that the old one has earned; a failure of the old one does not harm it."""
    provider = SecretsProvider(clock)
    old, other = pools.one(key_id="rotated", priority=0), pools.one(key_id="other")
    late = asyncio.Event()
    provider.script([late, invalid_key()], key_id="rotated")
    async with Router([old, other], provider=provider, clock=clock, store=store) as router:
        hanging = asyncio.create_task(router.send("x"))
        await rest(router, provider)
        provider.script(invalid_key(), key_id="rotated", times=2)
        for _ in range(2):
            assert (await router.send("x")).key_id == "other"
            clock.shift(11.0)
        assert (await router.send("x")).key_id == "other"
        assert (await router.health_check())["quarantined"]
        report = await router.reload([with_secret(old, "the-new-one"), other])
        assert str(report) == "changed: rotated/model-a (secret)"
        assert (await router.send("x")).key_id == "rotated"
        assert provider.secrets[-1] == "the-new-one"
        late.set()  # what began with the old one ends with it, and goes on elsewhere
        assert (await hanging).success
        assert (await router.send("x")).key_id == "rotated"
        assert not (await router.health_check())["quarantined"]
    await store.aclose()


async def test_what_waits_sees_the_new_pool_at_once(
    make_router: MakeRouter, pools: Pools, provider: FakeProvider, clock: ManualClock
) -> None:
    """A new key serves it, a raised limit does; without its model it goes elsewhere, or is told."""
    lone = pools.one("model-a", rpm=1)
    spare = pools.one("model-b", "heavy", rpm=0)
    async with make_router([lone, spare], max_wait=600.0) as router:
        assert (await router.send("x", model="model-a")).success

        async def waiting(**options: Any) -> asyncio.Task[Response]:
            task = asyncio.create_task(router.send("x", **options))
            await clock.advance(0.0)
            assert not task.done()
            return task

        task = await waiting(model="model-a", fallback="none")
        await router.reload([lone, spare, (added := pools.one("model-a", rpm=1))])
        assert (await task).key_id == added.key.key_id

        task = await waiting(workload="light", fallback="none")
        report = await router.reload([(lone := with_rpm(lone, 2)), spare])
        assert report.changed == {lone.id: ("rpm 1 → 2",)}
        assert (await task).key_id == lone.key.key_id

        bound = await waiting(model="model-a", fallback="model")
        by_workload = await waiting(workload="light", fallback="none")
        free = await waiting(model="model-a")
        await router.reload([(spare := with_rpm(spare, 5))], workloads=["heavy"])
        with pytest.raises(UnknownModelError, match="model-a"):
            await bound
        with pytest.raises(UnknownWorkloadError, match="light"):
            await by_workload
        assert (await free).model == "model-b"
        with pytest.raises(UnknownModelError):
            await router.send("x", model="model-a")
        await router.reload([spare, lone], workloads=["light", "heavy"])
        clock.shift(61.0)
        assert (await router.send("x", model="model-a", fallback="none")).success
        assert set(router._sender.selector._lines) <= set(router._sender.orders.values())


async def test_what_is_known_of_a_deployment_goes_on(
    make_router: MakeRouter, pools: Pools, provider: FakeProvider, clock: ManualClock
) -> None:
    """Counts, cooldowns and failures outlive a reload that changes priority, weight, workload or limits."""
    busy, other = pools.one(key_id="busy", rpm=2, priority=0), pools.one(key_id="other", rpm=9)
    async with make_router([busy, other], base_backoff=0.0) as router:
        provider.script(ProviderError("down", kind=FailureKind.SERVER, code=503), key_id="busy")
        assert (await router.send("x")).key_id == "other"
        changed = attrs.evolve(busy, workload="medium", weight=3.0, methods=frozenset({"generateContent"}))
        report = await router.reload([other, changed])
        assert report.changed[busy.id] == (
            "workload light → medium",
            "weight 1.0 → 3.0",
            f"methods {', '.join(sorted(busy.methods))} → generateContent",
        )
        state = router.keys.pool.states[changed]
        assert (state.failures, state.group.workload) == (1, "medium")
        clock.shift(40.0)
        assert (await router.send("x", workload="medium")).key_id == "busy"
        assert (await router.send("x", workload="medium")).key_id == "other"  # two of its minute are counted
        await router.reload([other, (changed := attrs.evolve(changed, priority=-1))])
        assert router.keys.pool.states[changed] is state
        assert state.is_parked
        await router.reload([other, with_rpm(changed, 3)])
        assert (await router.send("x", workload="medium")).key_id == "busy"
        assert (await router.send("x", workload="medium")).key_id == "other"
        await router.keys.disable("busy")
        await router.reload([other, attrs.evolve(with_rpm(changed, 3), priority=-1)])
        clock.shift(61.0)
        assert (await router.send("x")).key_id == "other"
        await router.reload([other, busy], inactive=[pools.one(key_id="shown")])
        rows = {row["key_id"]: row for row in await router.get_all_key_statuses()}
        assert rows["busy"]["disabled"]
        assert not rows["shown"]["active"]
        await router.keys.enable("busy")
        assert (await router.send("x")).key_id == "busy"


class SlowStore(MemoryStore):
    """A memory store whose answers wait for ``gate``."""

    gate: asyncio.Event | None = None
    show: asyncio.Event | None = None

    async def reserve(self, *args: Any) -> Any:
        decision = await super().reserve(*args)
        if self.gate is not None:
            await self.gate.wait()
        return decision

    async def snapshot(self, *args: Any) -> Any:
        snapshots = await super().snapshot(*args)
        if self.show is not None:
            await self.show.wait()
        return snapshots


async def test_what_the_store_is_asked_meanwhile_is_given_back(
    make_router: MakeRouter, pools: Pools, provider: FakeProvider, clock: ManualClock
) -> None:
    """A grant on a key that is gone is released, one on other terms is used, and a refusal is asked anew."""
    store = SlowStore(clock=clock)
    first, second = pools.one(key_id="first", rpm=1, priority=0), pools.one(key_id="second", rpm=1)
    async with make_router([first, second], store=store) as router:
        store.gate = asyncio.Event()
        sends = [asyncio.create_task(router.send("x")) for _ in range(3)]  # two of them behind the gate
        await clock.advance(0.0)
        await router.reload([with_secret(first, "another"), pools.one(key_id="third", rpm=5)])
        store.gate.set()
        answered = Counter([(await send).key_id for send in sends])
        assert answered == {"first": 1, "third": 2}
        store.gate = asyncio.Event()
        send = asyncio.create_task(router.send("x", workload="light"))
        await clock.advance(0.0)
        await router.reload([first := with_rpm(with_secret(first, "another"), 7)])
        store.gate.set()
        assert (await send).key_id == "first"
        store.show = asyncio.Event()
        explaining = asyncio.create_task(router.explain("x"))
        showing = asyncio.create_task(router.get_all_key_statuses())
        await clock.advance(0.0)
        await router.reload([attrs.evolve(first, priority=9)])
        store.show.set()
        assert (taken := (await explaining).taken) is not None
        assert taken.priority == 9
        assert [row["active"] for row in await showing] == [True]
        assert "0 reservations" in repr(store)
        assert router._sender.selector._gate.busy == 0
    rows = await store.snapshot([first, second])
    assert [row.quotas[0].used for row in rows] == [2, 0]


class Picky(FakeProvider):
    """Rejects some requests."""

    def validate(self, request: Request) -> None:
        if "picture" in request.contents:
            raise InvalidRequestError("no pictures")


async def test_keys_move_to_other_providers(pools: Pools, clock: ManualClock) -> None:
    """What waits goes there, if the provider can serve it; a failure still goes elsewhere."""
    one, two = FakeProvider(clock=clock), Picky(clock=clock)
    here, there = pools.one(key_id="here", provider="one", rpm=1), pools.one(key_id="there", provider="two")
    options: dict[str, Any] = {"clock": clock, "max_wait": 600.0, "base_backoff": 0.0}
    async with Router([here], provider={"one": one, "two": two}, **options) as router:
        failing = asyncio.Event()
        one.script([failing, ProviderError("down", kind=FailureKind.SERVER, code=503)])
        sends = [asyncio.create_task(router.send(words)) for words in ("fails", "waits", "picture")]
        await clock.advance(0.0)
        with pytest.raises(ConfigError, match="no adapter for provider 'three'"):
            await router.reload([pools.one(provider="three")])
        await router.reload([here, there])
        failing.set()
        assert [(await send).key_id for send in sends[:2]] == ["there"] * 2
        assert (await router.send("x")).key_id == "there"
        assert not sends[2].done()
        await router.reload([with_rpm(here, 3), there])
        assert (await sends[2]).key_id == "here"

        await router.reload([with_rpm(here, 1)])
        waiting = asyncio.create_task(router.send("waits", model="model-a"))
        await clock.advance(0.0)
        assert not waiting.done()
        await router.reload([attrs.evolve(there, model="model-b")])
        assert (await waiting).model == "model-b"
        await router.reload([with_rpm(here, 3), there])

        one.script([failing := asyncio.Event(), ProviderError("down", kind=FailureKind.SERVER, code=503)])
        sends = [asyncio.create_task(router.send(words, workload="light")) for words in ("picture",) * 4]
        await clock.advance(0.0)
        await router.reload([there])
        told = await asyncio.gather(*sends[1:], return_exceptions=True)
        assert all(
            isinstance(each, InvalidRequestError) and "none of the providers" in str(each) for each in told
        )
        failing.set()  # what had an attempt says why that failed
        assert isinstance((await sends[0]).error, ProviderError)


# --- when it fails ------------------------------------------------------------------------------------


async def test_reloads_at_once_cancelled_and_after_the_end(
    make_router: MakeRouter, pools: Pools, clock: ManualClock
) -> None:
    """The last one wins; one that is cancelled changes all or nothing; a closed router refuses."""
    one, two, three = (pools.one(key_id=name) for name in ("one", "two", "three"))
    async with make_router([one]) as router:
        reports = await asyncio.gather(router.reload([one, two]), router.reload([three]))
        assert [report.added for report in reports] == [("two/model-a",), ("three/model-a",)]
        assert reports[1].removed == ("one/model-a", "two/model-a")
        await router._reloading.acquire()
        task = asyncio.create_task(router.reload([one]))
        other = asyncio.create_task(router.reload([two]))
        await clock.advance(0.0)
        task.cancel()
        router._reloading.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await other).removed == ("three/model-a",)
        assert (await router.send("x")).key_id == "two"
        assert not await router.reload([two])
        for wrong in ([], [two, two], "keys.json"):
            with pytest.raises(ConfigError):
                await router.reload(wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="not made by Router"):
            await router.reload()
        with pytest.raises(ConfigError, match="belong to deployments"):
            await router.reload(workloads=["light"])
        assert (await router.send("x")).key_id == "two"
    with pytest.raises(RouterClosedError):
        await router.reload([one])


class DownStore(MemoryStore):
    """A store that can be down."""

    is_down = False

    async def reserve(self, *args: Any) -> Any:
        self._check()
        return await super().reserve(*args)

    async def charge(self, *args: Any) -> Any:
        self._check()
        return await super().charge(*args)

    async def snapshot(self, *args: Any) -> Any:
        self._check()
        return await super().snapshot(*args)

    def _check(self) -> None:
        if self.is_down:
            raise StoreUnavailableError("gone")


async def test_a_reload_while_the_store_is_down(
    pools: Pools, provider: FakeProvider, clock: ManualClock
) -> None:
    """It needs no store: what comes is used within this process's share, and counted when it is back."""
    store = DownStore(clock=clock)
    front = FailoverStore(store, local_share=0.5, clock=clock)
    gone, added = pools.one(key_id="gone", rpm=4), pools.one(key_id="added", rpm=4)
    async with Router([gone], provider=provider, clock=clock, store=front) as router:
        assert (await router.send("x")).key_id == "gone"
        store.is_down = True
        assert (await router.send("x")).success
        await router.reload([with_secret(gone, "new"), added])
        await router.reload([added])
        outcomes = [await router.send("x") for _ in range(3)]
        assert [outcome.key_id for outcome in outcomes if outcome.success] == ["added"] * 2
        assert isinstance(outcomes[2].error, QuotaExhaustedError)
        store.is_down = False
        await clock.advance(2.0)
        await router.health_check()  # looks whether it is back
        await clock.advance(0.0)
        assert (await router.health_check())["store_ok"]
        used = [row.quotas[0].used for row in await store.snapshot([gone, added])]
        assert used == [2, 2]
    await front.aclose()


# --- from files ---------------------------------------------------------------------------------------


class Files:
    """The keys file and the ``.env`` beside it."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys.json"
        self.env = folder / ".env"

    def write(self, *entries: dict[str, Any], **variables: str) -> None:
        """Write both: an entry for each key, and its secret unless that is among the variables."""
        named = {f"API_KEY_{entry['key_id']}": f"AIza-secret-of-{entry['key_id']}" for entry in entries}
        self.keys.write_text(json.dumps({"keys": [{"provider": "gemini", **entry} for entry in entries]}))
        self.env.write_text("".join(f"{name}={value}\n" for name, value in (named | variables).items()))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Files in a folder of their own, with no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    return Files(tmp_path)


def entry(key_id: str, model: str = "model-a", **fields: Any) -> dict[str, Any]:
    """Return an entry of a keys file."""
    return {"key_id": key_id, "model_name": model, "limits": {"rpm": 10}, **fields}


async def test_files_are_read_again(
    files: Files, clock: ManualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has changed is returned, logged and reported; settings follow, unless the program has set them."""
    events: list[Event] = []

    class Observer:
        def observe(self, event: Event) -> None:
            events.append(event)

    provider = SecretsProvider(clock)
    files.write(entry("a"), entry("b", active=False))
    caplog.set_level(logging.INFO, "llm_router")
    async with Router.from_config(
        "keys.json", env={}, provider=provider, clock=clock, max_retries=1, observers=[Observer()]
    ) as router:
        monkeypatch.chdir("/")  # as daemons do
        assert not await router.reload()
        assert caplog.messages == []
        files.write(
            entry("a", limits={"rpm": 12, "rpd": 100}),
            entry("b"),
            API_KEY_a="AIza-another-secret",
            LLM_MAX_RETRIES="7",
            LLM_MAX_WAIT_S="5",
        )
        report = await router.reload()
        assert report.changed == {"a/model-a": ("secret", "rpm 10 → 12", "rpd unlimited → 100")}
        assert str(report) == (
            "added: b/model-a; changed: a/model-a (secret, rpm 10 → 12, rpd unlimited → 100); "
            "settings: max_wait"
        )
        assert caplog.messages == [f"the configuration was read again; {report}"]
        assert events[-1] == Reloaded(
            at=clock.time(), added=("b/model-a",), changed=("a/model-a",), settings=("max_wait",)
        )
        assert router._sender.policy.max_retries == 1
        await router.send("x")
        assert {status["key_id"] for status in await router.get_all_key_statuses()} == {"a", "b"}
        assert "AIza" not in caplog.text


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ('{"keys": [', "is not JSON"),
        ('{"keys": []}', "keys"),
        (None, "does not exist"),
        ("API_KEY_a=", "API_KEY_a"),
        ("LLM_ROUTER_STORE=redis://:hunter2@host:6379/0", "store .* has changed"),
        ("GOOGLE_GEMINI_BASE_URL=https://user:hunter2@proxy.example", "BASE_URL has changed"),
    ],
)
async def test_a_broken_file_changes_nothing(
    files: Files, clock: ManualClock, broken: str | None, words: str
) -> None:
    """The error says why, without a secret, and the router goes on as before."""
    files.write(entry("a"))
    async with Router.from_config("keys.json", env={}, clock=clock) as router:
        before = await router.get_all_key_statuses()
        files.write(entry("a", limits={"rpm": 99}), entry("b"))
        if broken is None:
            files.keys.unlink()
        elif broken.startswith("{"):
            files.keys.write_text(broken)
        else:
            files.env.write_text(f"{files.env.read_text()}{broken}\n")
        with pytest.raises(ConfigError, match=words) as caught:
            await router.reload()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        own = "".join(line for line in shown.format() if "/llm_router/" in line)
        assert "hunter2" not in f"{caught.value}{own}"
        assert "AIza" not in f"{caught.value}{own}"
        assert await router.get_all_key_statuses() == before
        files.write(entry("a"))
        assert not await router.reload()


# --- watching -----------------------------------------------------------------------------------------


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something is so, which a thread or the file system sees to."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)


@pytest.mark.slow
async def test_a_watching_router_follows_its_files(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced, as editors save, and one written beside it are one reload; closing ends it."""
    caplog.set_level(logging.INFO, "llm_router")
    files.write(entry("a"))
    provider = FakeProvider()
    async with Router.from_config("keys.json", env={}, provider=provider, watch=True) as router:
        monkeypatch.chdir("/")
        await asyncio.sleep(0)
        [task] = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        await eventually(lambda: threading.active_count() > 1)
        (files.keys.parent / "other").mkdir()
        beside = Files(files.keys.parent / "other")
        beside.write(entry("a"), entry("b"))
        files.keys.unlink()
        await asyncio.sleep(0.01)
        files.env.write_text(beside.env.read_text())
        beside.keys.replace(files.keys)
        await eventually(lambda: len(router.keys.pool) == 2)
        assert caplog.messages == ["the configuration was read again; added: b/model-a"]
        assert {(await router.send("x")).key_id for _ in range(4)} == {"a", "b"}
        assert not task.done()
    assert task.done()


async def test_a_broken_file_is_a_warning_once(
    files: Files, clock: ManualClock, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is missing or half written for a moment is none; and there is no secret in it."""
    files.write(entry("a"))
    router = Router.from_config("keys.json", env={}, provider=provider, clock=clock, watch=True)
    assert router._watcher is not None
    ticks: asyncio.Queue[str] = asyncio.Queue()

    async def each_tick() -> AsyncIterator[str]:
        while True:
            yield await ticks.get()

    watching = asyncio.create_task(router._watcher.run(each_tick()))

    async def tick(seconds: float = 0.0) -> None:
        ticks.put_nowait("changed")
        for _ in range(30):  # a thread reads the files
            await asyncio.sleep(0.001)
        await clock.advance(seconds)

    whole = files.keys.read_text()
    files.keys.write_text(whole[:20])
    await tick()
    files.write(entry("a"), entry("b"))
    await clock.advance(1.0)
    await eventually(lambda: len(router.keys.pool) == 2)
    assert caplog.messages == []
    for broken in ("API_KEY_a=AIza-one AIza-two\n", "API_KEY_a=AIza-one  AIza-three\n"):
        files.env.write_text(broken)
        for _ in range(3):
            await tick(2.0)
    [message] = caplog.messages
    assert "goes on as before" in message
    assert "API_KEY_a" in message
    assert "AIza" not in message
    assert (await router.send("x")).success
    files.write(entry("c"))
    await tick()
    await eventually(lambda: [each.key.key_id for each in router.keys.pool.states] == ["c"])
    await router.aclose()
    files.write(entry("d"))
    await tick()
    await asyncio.wait_for(watching, 5)


async def test_a_watch_goes_on_as_long_as_there_is_a_router(
    files: Files, clock: ManualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without notifications it looks by itself, no bug in a reload ends it, and it keeps nothing alive."""

    def no_watches(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    class BrokenRouter(Router):
        async def reload(self, *_: Any, **__: Any) -> Any:
            raise ValueError("AIza")

    files.write(entry("a"))
    files.env.unlink()
    files.env.symlink_to(".env")
    monkeypatch.setattr("watchfiles.awatch", no_watches)
    env = {"API_KEY_a": "AIza-secret"}
    router = BrokenRouter.from_config("keys.json", env=env, env_file=None, clock=clock, watch=True)
    watcher = router._watcher
    assert watcher is not None
    watching = asyncio.create_task(watcher.run())
    await clock.advance(1.0)
    told, failed = caplog.messages
    assert "cannot be watched (No space left on device): its files are looked at every 5 s" in told
    assert failed.endswith("goes on as before: ValueError")
    assert not watching.done()
    watching.cancel()
    await asyncio.wait([watching])

    async def tick() -> AsyncIterator[int]:
        yield 1
        raise AssertionError("it goes on without a router")

    del router
    gc.collect()
    await watcher.run(tick())


def test_watching_needs_watchfiles(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says what to install; and settings alone cannot be watched."""
    files.write(entry("a"))
    with pytest.raises(ConfigError, match="needs a source"):
        Router.from_settings(load_settings("keys.json", env={}), watch=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"llm-quota-router\[watch\]"):
        Router.from_config("keys.json", env={}, watch=True)
