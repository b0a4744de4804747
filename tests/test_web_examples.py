"""The examples for web frameworks and task queues, with what they import installed or not at all."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llm_router import Router
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from tests.conftest import Pools

WEB = Path(__file__).parent.parent / "examples" / "web"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def load(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run an example, whose configuration has one key with one request a minute."""
    made: dict[str, Any] = {}

    def from_config(_path: str, **options: object) -> Router:
        made.update(options)
        return Router([pools.one(rpm=1, workload="light")], provider=FakeProvider())

    def run(framework: str) -> dict[str, Any]:
        pytest.importorskip(framework, reason=f"{framework} is not installed: .ci/run installs it by name")
        monkeypatch.setattr(Router, "from_config", from_config)
        return runpy.run_path(str(WEB / f"with_{framework}.py"))

    return run


def test_fastapi(load: Callable[..., dict[str, Any]]) -> None:
    """The second request is told when to come back."""
    pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")
    app = load("fastapi")["app"]
    testing = importlib.import_module("fastapi.testclient")
    with testing.TestClient(app) as client:
        assert client.post("/ask", params={"prompt": "x"}).json() == "echo: x"
        refused = client.post("/ask", params={"prompt": "x"})
    assert (refused.status_code, 55 <= int(refused.headers["Retry-After"]) <= 61) == (429, True)


def test_flask(load: Callable[..., dict[str, Any]]) -> None:
    """Likewise."""
    example = load("flask")
    client = example["app"].test_client()
    assert client.post("/ask", data={"prompt": "x"}).text == "echo: x"
    refused = client.post("/ask", data={"prompt": "x"})
    assert (refused.status_code, 55 <= int(refused.headers["Retry-After"]) <= 61) == (429, True)
    example["router"].close()


def test_celery(load: Callable[..., dict[str, Any]]) -> None:
    """The task answers; the broker is not needed to run it here."""
    example = load("celery")
    assert example["ask"].apply(args=["x"]).get() == "echo: x"
    example["router"].close()


@pytest.mark.parametrize("path", sorted(WEB.glob("*.py")), ids=lambda path: path.stem)
def test_each_is_listed_and_short(path: Path) -> None:
    """The README of the examples names each; none has more than 35 lines."""
    readme = (WEB.parent / "README.md").read_text(encoding="utf-8")
    assert f"[{path.name}](web/{path.name})" in readme
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 35
