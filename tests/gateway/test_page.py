"""The page of a gateway, in process: who may see it, what changes something, and what it is told."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx2 as httpx
import pytest

from llm_router import (
    Demand,
    Deployment,
    Key,
    KeyStatus,
    Metric,
    Pacing,
    Quota,
    Router,
    Secret,
    StoreUnavailableError,
)
from llm_router.domain.cooldown import Cooldown
from llm_router.domain.deployment import ProjectDeployment
from llm_router.domain.limits import LearntLimit
from llm_router.gateway import Gateway, live
from llm_router.gateway.activity import Activity
from llm_router.gateway.callers import Callers
from llm_router.gateway.sessions import COOKIE, LASTS, Sessions
from llm_router.gateway.tokens import TokenFile
from llm_router.stores.base import DeploymentSnapshot
from llm_router.stores.memory import MemoryStore
from llm_router.testing import FakeProvider, ManualClock

ORIGIN = "http://localhost:8080"
OURS = {"origin": ORIGIN, "x-llm-router-page": "1"}
ODD = "<script>alert(1)</script>"
POOL = [
    Deployment(Key(key_id, Secret(f"AIza{place}")), model, "light", quotas=(Quota(Metric.RPM, 10),))
    for place, key_id in enumerate(("alpha", ODD))
    for model in ("flash", "pro")
]


class _Store(MemoryStore):
    """A store that may fail, and counts how often it is looked at."""

    trouble_ahead = False
    looks = 0

    async def snapshot(self, deployments: Any) -> list[DeploymentSnapshot]:
        self.looks += 1
        if self.trouble_ahead:
            raise StoreUnavailableError("no store today")
        return await super().snapshot(deployments)


class _Setup:
    """A gateway with a page, and what a test does with it."""

    def __init__(
        self, path: Path, *, tokens: bool = True, pool: list[Deployment] = POOL, **options: Any
    ) -> None:
        self.clock = ManualClock()
        self.activity = Activity()
        self.store = _Store(clock=self.clock)
        self.router = Router(
            pool,
            provider=FakeProvider(),
            clock=self.clock,
            store=self.store,
            observers=[self.activity],
            **options,
        )
        self.file = TokenFile(path / "tokens.json")
        self.admin, self.plain = self.file.add("boss", admin=True), self.file.add("ann")
        callers = Callers(self.file) if tokens else None
        self.gateway = Gateway(self.router, callers=callers, activity=self.activity)
        transport = httpx.ASGITransport(self.gateway)
        self.client = httpx.AsyncClient(transport=transport, base_url=ORIGIN)

    async def sign_in(self, token: str | None = None, **headers: str) -> httpx.Response:
        body = {"token": self.admin if token is None else token}
        return await self.client.post("/page/session", json=body, headers=OURS | headers)

    async def change(self, what: str, body: Any, headers: dict[str, str] | None = None) -> int:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = OURS if headers is None else headers
        answer = await self.client.post(f"/page/keys/{what}", content=content, headers=found)
        return answer.status_code

    async def disabled(self) -> list[tuple[str, str]]:
        rows: list[KeyStatus] = await self.router.get_all_key_statuses()
        return [(row["key_id"], row["model"]) for row in rows if row["disabled"]]

    @asynccontextmanager
    async def events(self, **headers: str) -> AsyncIterator[_Events]:
        cookie = f"{COOKIE}={self.client.cookies.get(COOKIE, '')}"
        events = _Events(self.gateway, {"host": "localhost:8080", "cookie": cookie} | headers)
        try:
            yield events
        finally:
            events.leave()
            await asyncio.wait_for(events.task, 5)


class _Events:
    """A stream of server-sent events, and what came of it."""

    def __init__(self, gateway: Gateway, headers: dict[str, str]) -> None:
        self.sent: list[Any] = []
        self.at_exit: Any = None
        self._gone = asyncio.Event()
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "raw_path": b"/page/events",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "state": {"at_exit": lambda call: setattr(self, "at_exit", call)},
        }
        self.task = asyncio.create_task(gateway(scope, self._receive, self._send))

    def leave(self) -> None:
        self._gone.set()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def frames(self) -> list[dict[str, Any]]:
        bodies = [each["body"] for each in self.sent[1:] if each["body"]]
        assert all(body.startswith(b"data: ") and body.endswith(b"\n\r\n") for body in bodies)
        return [json.loads(body.removeprefix(b"data: ")) for body in bodies]

    @property
    def is_ended(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[_Setup]:
    """Provide a gateway with tokens."""
    found = _Setup(tmp_path)
    async with found.router, found.client:
        yield found


async def test_signing_in(setup: _Setup, caplog: pytest.LogCaptureFixture) -> None:
    """An admin token gives a cookie without the token, which no script, other site or path sees."""
    caplog.set_level(logging.DEBUG, "llm_router")
    assert (await setup.client.get("/page/session")).json() == {
        "needs_token": True,
        "signed_in": False,
        "name": None,
    }
    assert [(await setup.sign_in(each)).status_code for each in (setup.plain, "wrong", "")] == [403, 401, 401]
    answer = await setup.sign_in()
    assert answer.json()["name"] == "boss"
    cookie = answer.headers["set-cookie"]
    parts = cookie.split("; ")
    assert parts[1:] == ["Path=/page", f"Max-Age={LASTS}", "HttpOnly", "SameSite=Strict"]
    assert setup.admin.removeprefix("llmr_") not in cookie + answer.text + caplog.text
    assert "boss has signed in" in caplog.text
    assert (await setup.client.get("/page/session")).json()["name"] == "boss"
    out = await setup.client.delete("/page/session", headers=OURS)
    assert "Max-Age=0" in out.headers["set-cookie"]
    assert not (await setup.client.get("/page/session")).json()["signed_in"]


async def test_behind_tls_the_cookie_is_secure(tmp_path: Path) -> None:
    """A proxy that is trusted says that the client speaks TLS, and what the page's origin is."""
    setup = _Setup(tmp_path)
    setup.gateway.trusts_proxy = True
    forwarded = {"x-forwarded-proto": "https", "x-forwarded-host": "router.example"}
    async with setup.router, setup.client:
        assert (await setup.sign_in(**forwarded)).status_code == 403
        answer = await setup.sign_in(**forwarded, origin="https://router.example")
        assert answer.headers["set-cookie"].endswith("; Secure")


async def test_a_session_ends(tmp_path: Path) -> None:
    """It ends with its time and its token; one that was changed or is no admin's never began."""
    clock = ManualClock()
    file = TokenFile(tmp_path / "tokens.json")
    file.add("boss", admin=True)
    file.add("ann")
    callers = Callers(file, clock=clock)
    sessions = Sessions(callers, clock)
    boss, ann = callers.tokens.grants
    value = sessions.begin(boss)
    assert sessions.find(value) == boss
    assert sessions.find(sessions.begin(ann)) is None
    later = str(int(value.partition(".")[0]) + 1)
    odd = ["", "..", "a.b.c", value[:-1], value[:-1] + "é", value.replace(value.partition(".")[0], later)]
    assert [sessions.find(each) for each in (*odd, f"{'9' * 5000}.{boss.owner}.x")] == [None] * 7
    clock.jump(LASTS - 1)
    assert sessions.find(value) == boss
    clock.jump(2)
    assert sessions.find(value) is None
    value = sessions.begin(boss)
    file.remove("boss")
    clock.jump(2)
    assert sessions.find(value) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": ORIGIN},
        {"x-llm-router-page": "1"},
        OURS | {"origin": "null"},
        OURS | {"origin": "http://localhost:8081"},
        OURS | {"origin": "https://localhost:8080"},
        OURS | {"sec-fetch-site": "same-site"},
    ],
)
async def test_another_page_changes_nothing(setup: _Setup, headers: dict[str, str]) -> None:
    """With a good cookie, but not from the page itself, a change, a sign-in and a sign-out are refused."""
    await setup.sign_in()
    assert await setup.change("disable", {"key_id": "alpha"}, headers) == 403
    for verb in ("POST", "DELETE"):
        body = json.dumps({"token": setup.admin})
        answer = await setup.client.request(verb, "/page/session", content=body, headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert await setup.disabled() == []


async def test_changes(setup: _Setup) -> None:
    """Keys and models are disabled, enabled and lifted, with who it was; what is odd is refused by name."""
    assert await setup.change("disable", {"key_id": "alpha"}) == 401
    await setup.sign_in()
    assert await setup.change("disable", {"key_id": ODD, "model": "pro"}) == 200
    assert await setup.disabled() == [(ODD, "pro")]
    assert await setup.change("disable", {"key_id": "alpha", "reason": "overdue"}) == 200
    reasons = {row["reason"] for row in await setup.router.get_all_key_statuses() if row["disabled"]}
    assert reasons == {"disabled: by boss", "disabled: overdue"}
    assert await setup.change("enable", {"key_id": ODD, "model": "pro"}) == 200
    assert await setup.change("enable", {"key_id": "alpha"}) == 200
    assert await setup.change("lift", {"key_id": "alpha"}) == 200
    assert await setup.disabled() == []
    for what, body, expected in (
        ("disable", {"key_id": "omega"}, 404),
        ("disable", {"key_id": "alpha", "model": "unknown"}, 404),
        ("explode", {"key_id": "alpha"}, 404),
        ("disable", b"{", 400),
        ("disable", b"[" * 4000, 400),
        ("disable", [], 400),
        ("disable", {"key_id": 1}, 400),
        ("disable", {"key_id": "alpha", "model": 1}, 400),
        ("disable", {"key_id": "alpha", "reason": "x" * 201}, 400),
        ("disable", {"key_id": "x" * 5000}, 413),
    ):
        assert await setup.change(what, body) == expected
    setup.store.trouble_ahead = True
    assert await setup.change("disable", {"key_id": "alpha"}) == 503


async def test_every_answer_is_guarded(setup: _Setup) -> None:
    """No answer may be framed or sniffed, and the files do without what the policy forbids."""
    for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg", "/page/session", "/page/none"):
        answer = await setup.client.get(path)
        assert answer.status_code == (404 if path == "/page/none" else 200)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert ("unsafe" in policy, "frame-ancestors 'none'" in policy) == (False, True)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        if path == "/":
            markup = answer.text
            assert not re.search(r"<style|style=|\son\w+=|//|<script>", markup)
        if path == "/page/page.js":
            assert not any(each in answer.text for each in ("innerHTML", "eval(", "insertAdjacentHTML"))
    assert (await setup.client.post("/")).status_code == 405
    head = await setup.client.head("/")
    assert (head.status_code, head.content) == (200, b"")


async def test_without_tokens_it_is_open_to_this_machine(tmp_path: Path) -> None:
    """Then nobody signs in; a page of another site neither reads nor changes it."""
    setup = _Setup(tmp_path, tokens=False)
    async with setup.router, setup.client:
        assert (await setup.client.get("/page/session")).json()["signed_in"]
        assert (await setup.sign_in()).status_code == 404
        assert await setup.change("disable", {"key_id": "alpha"}, {}) == 403
        assert await setup.change("disable", {"key_id": "alpha"}) == 200
        assert len(await setup.disabled()) == 2
        for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
            assert (await setup.client.get("/page/session", headers=headers)).status_code == 403
        async with setup.events(**{"sec-fetch-site": "cross-site"}) as events:
            await events.task
            assert events.status == 403


async def test_frames(setup: _Setup) -> None:
    """Viewers share one frame a second, which is made for them only; it has no secret and no prompt."""
    async with setup.events() as events:
        await events.task
        assert events.status == 401
    await setup.sign_in()
    await setup.router.send("my secret prompt", metadata={"tenant": ODD})
    await setup.router.keys.disable(ODD, "pro")
    before = setup.store.looks
    await setup.clock.advance(60)
    assert setup.store.looks == before
    async with setup.events() as one, setup.events() as other:
        await setup.clock.advance(0.5)
        assert (len(one.frames), len(other.frames)) == (1, 1)
        await setup.clock.advance(2)
        assert one.frames == other.frames
        assert (len(one.frames), setup.store.looks) == (3, before + 3)
        assert dict(one.sent[0]["headers"])[b"cache-control"] == b"no-store"
    await setup.clock.advance(60)
    assert setup.store.looks == before + 3
    frame = one.frames[0]
    rows = {(row["key_id"], row["model"]): row for row in frame["keys"]}
    assert (rows[ODD, "pro"]["disabled"], rows[ODD, "pro"]["scope"]) == (True, "model")
    assert rows["alpha", "flash"]["limits"]["rpm"]["limit"] == 10
    assert frame["counts"]["usable"] == 2
    assert [each["what"] for each in frame["decisions"]] == ["disabled", "answered"]
    assert ODD in frame["decisions"][1]["about"]
    assert not any(secret in json.dumps(frame) for secret in ("AIza", "secret prompt", setup.admin))


async def test_a_frame_says_what_is_paced(tmp_path: Path) -> None:
    """What is kept for later in the day is told with its reason and time, and is not counted as usable."""
    pool = [attrs.evolve(POOL[0], quotas=(Quota(Metric.RPD, 20),))]
    setup = _Setup(tmp_path, pool=pool, rpd_pacing=Pacing())
    async with setup.router, setup.client:
        await setup.router.send("x")
        frame = await live.LiveView(setup.router.keys, setup.activity).frame()
        (row,) = frame["keys"]
        assert (row["state"], row["reason"]) == ("paced", "rpd pacing")
        assert row["usable_in_seconds"] > 0
        assert (frame["counts"]["usable"], frame["counts"]["paced"]) == (0, 1)


async def test_a_frame_says_what_a_project_has_spent(setup: _Setup) -> None:
    """Its deployments are not ready, though their own quotas have room."""
    router = setup.router
    deployment = next(iter(router.keys.pool.states))
    shared = ProjectDeployment.spending_of(deployment)
    await setup.store.cool_down(Cooldown.learn(shared.model_scope, LearntLimit(Metric.RPM, 1)))
    await setup.store.reserve("elsewhere", [shared], Demand(1, 1), 600.0)
    frame = await live.LiveView(router.keys, setup.activity).frame()
    rows = [row for row in frame["keys"] if row["project"] == deployment.key.project and row["active"]]
    assert rows
    assert {(row["state"], *row["spent"]) for row in rows} == {("spent", "spending")}


async def test_frames_end_with_the_server_and_when_making_them_fails(
    setup: _Setup, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that is told to stop does not wait for viewers, and no viewer is left with what is old."""
    await setup.sign_in()
    async with setup.events() as events:
        await setup.clock.advance(1)
        assert events.at_exit is not None
        events.at_exit()
        await asyncio.wait_for(events.task, 5)
        assert events.is_ended
    setup.activity.rates = None  # type: ignore[method-assign,assignment]
    async with setup.events() as events:
        await setup.clock.advance(2)
        assert (events.is_ended, "the page failed: TypeError" in caplog.text) == (True, True)


async def test_frames_end_with_the_token(setup: _Setup) -> None:
    """Who has looked until then sees no further frame once the token is removed."""
    await setup.sign_in()
    async with setup.events() as events:
        await setup.clock.advance(1)
        seen = len(events.frames)
        setup.file.remove("boss")
        assert setup.gateway.callers is not None
        setup.gateway.callers._look_again = 0
        await setup.clock.advance(1)
        assert (len(events.frames), events.is_ended) == (seen, True)


async def test_there_are_not_too_many_viewers(setup: _Setup) -> None:
    """The one too many is told so, and can look once another has left."""
    await setup.sign_in()
    async with AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(setup.events())
        async with setup.events() as events:
            await asyncio.wait_for(events.task, 5)
            assert events.status == 503
    async with setup.events() as events:
        await setup.clock.advance(1)
        assert events.status == 200


async def test_a_frame_while_the_store_fails(setup: _Setup) -> None:
    """It says so, and has what this process knows all the same."""
    view = live.LiveView(setup.router.keys, setup.activity)
    setup.store.trouble_ahead = True
    frame = await view.frame()
    assert (frame["trouble"], "keys" in frame, frame["rates"]["calls"]) == ("no store today", False, 0)


async def test_a_large_pool_is_cut(tmp_path: Path) -> None:
    """Of too many deployments those are shown that cannot be used, and how many are missing."""
    pool = [Deployment(Key(f"k{place}", Secret(f"AIza{place}")), "flash", "light") for place in range(510)]
    setup = _Setup(tmp_path, pool=pool)
    async with setup.router, setup.client:
        await setup.router.keys.disable("k509")
        frame = await live.LiveView(setup.router.keys, setup.activity).frame()
        assert (len(frame["keys"]), frame["not_shown"], frame["keys"][0]["key_id"]) == (500, 10, "k509")
        assert frame["counts"] | {"active": 510, "usable": 509, "disabled": 1} == frame["counts"]
