"""The page of a gateway in a headless Chromium, as somebody uses it: by keyboard, in the dark, on a phone."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.gateway import Gateway
from llm_router.gateway.activity import Activity
from llm_router.gateway.callers import Callers
from llm_router.gateway.tokens import TokenFile
from llm_router.testing import FakeProvider

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

ODD = "<img src=x onerror=alert(1)>"
SECRETS = {"alpha": "AIzaOfAlpha", ODD: "AIzaOfOdd"}
PROMPT = "what nobody else may read"
PHONE = 360


class _Gateway(Gateway):
    """A gateway that says on which loop it runs."""

    loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.loop = asyncio.get_running_loop()
        await super().__call__(scope, receive, send)


@attrs.frozen
class _Shown:
    """A gateway whose page is looked at, and the page."""

    page: Any
    gateway: _Gateway
    file: TokenFile
    token: str
    complaints: list[str]

    def ask(self, work: Any) -> Any:
        assert self.gateway.loop is not None
        return asyncio.run_coroutine_threadsafe(work, self.gateway.loop).result(10)

    def sign_in(self) -> None:
        self.page.get_by_label("Admin token").wait_for()
        self.page.keyboard.type(self.token)
        self.page.keyboard.press("Enter")
        self.page.get_by_role("heading", name="alpha").wait_for()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Provide a browser."""
    sandbox = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []  # root has none
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def shown(chromium: Any, running: Any, tmp_path: Path) -> Iterator[_Shown]:
    """Provide the page of a gateway with two keys, through one of which a prompt was sent."""
    pool = [
        Deployment(Key(key_id, Secret(secret)), "flash", "light", quotas=(Quota(Metric.RPM, 10),))
        for key_id, secret in SECRETS.items()
    ]
    activity = Activity()
    router = Router(pool, provider=FakeProvider(), observers=[activity])
    file = TokenFile(tmp_path / "tokens.json")
    token = file.add("boss", admin=True)
    gateway = _Gateway(router, callers=Callers(file), activity=activity)
    with running(gateway) as (url, _):
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(10_000)
        page = context.new_page()
        complaints: list[str] = []

        def refuse(dialog: Any) -> None:
            complaints.append("a script ran")
            dialog.dismiss()

        page.on("dialog", refuse)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        yield _Shown(page, gateway, file, token, complaints)
        context.close()


def test_by_keyboard(shown: _Shown) -> None:
    """One signs in, disables a key with a reason, and enables it again, without a mouse; names are text."""
    page = shown.page
    page.get_by_label("Admin token").wait_for()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="takes no such token").wait_for()
    shown.sign_in()
    router = shown.gateway.router
    shown.ask(router.send(PROMPT))
    page.get_by_text("answered").wait_for()
    page.get_by_role("heading", name=ODD).wait_for()
    assert page.get_by_role("meter", name="requests a minute").count() == 2
    page.get_by_role("button", name="Disable key alpha").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.type("overdue")
    page.keyboard.press("Enter")
    page.get_by_text("disabled: overdue").wait_for()
    assert [row["disabled"] for row in shown.ask(router.get_all_key_statuses())] == [True, False]
    page.get_by_role("button", name="Enable key alpha").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Disable key alpha").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Disable"
    page.get_by_label("only what cannot be used").check()
    page.get_by_text("0 of 2 key × model").wait_for()
    content = page.content()
    assert not any(secret in content for secret in (shown.token, PROMPT, "AIza"))
    assert [each for each in shown.complaints if "401" not in each] == []


def test_who_is_signed_out_sees_nothing(shown: _Shown) -> None:
    """When the token is removed, the page asks for another, and nothing of what it showed is left."""
    shown.sign_in()
    shown.file.remove("boss")
    shown.page.get_by_label("Admin token").wait_for()
    assert "alpha" not in shown.page.content()


def test_light_dark_and_on_a_phone(shown: _Shown, tmp_path: Path) -> None:
    """It follows the system's colours, and on a phone nothing sticks out and what is touched is large."""
    page = shown.page
    shown.sign_in()
    brightness = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness.append(sum(map(int, re.findall(r"\d+", found)[:3])))
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    assert (brightness[0] > 600, brightness[1] < 100) == (True, True)
    page.set_viewport_size({"width": PHONE, "height": 740})
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
    heights = page.evaluate(
        "[...document.querySelectorAll('#keys button:not([hidden])')].map(e => e.offsetHeight)"
    )
    assert min(heights) >= 44
