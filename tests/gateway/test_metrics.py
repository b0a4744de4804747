"""The metrics of a gateway, read back by prometheus_client, in process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_router import Deployment, Key, Metric, Quota, Router, Secret
from llm_router.gateway import Gateway
from llm_router.gateway.callers import Callers
from llm_router.gateway.metrics import Metrics
from llm_router.gateway.tokens import TokenFile
from llm_router.testing import FakeProvider

POOL = [Deployment(Key("alpha", Secret("AIzaAlpha")), "flash", quotas=(Quota(Metric.RPM, 10),))]


def _client(gateway: Gateway) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url="http://localhost:8080")


def _samples(text: str) -> dict[str, tuple[dict[str, str], float]]:
    found = text_string_to_metric_families(text)
    return {each.name: (each.labels, each.value) for family in found for each in family.samples}


def _gateway(metrics: Metrics, callers: Callers | None = None) -> Gateway:
    router = Router(POOL, provider=FakeProvider(), observers=metrics.observers)
    return Gateway(router, callers=callers, metrics=metrics)


async def test_metrics_are_for_admins(tmp_path: Path) -> None:
    """An admin token reads what was sent and what is left; another gets 403, none or a wrong one 401."""
    file = TokenFile(tmp_path / "tokens.json")
    admin, plain = file.add("boss", admin=True), file.add("ann")
    gateway = _gateway(Metrics(), Callers(file))
    await gateway.router.send("hello")
    async with _client(gateway) as client, gateway.router:

        async def status(token: str = "", verb: str = "GET") -> int:
            return (await client.request(verb, "/metrics", headers={"x-goog-api-key": token})).status_code

        assert [await status(each) for each in (plain, "wrong", "")] == [403, 401, 401]
        assert [await status(admin, verb) for verb in ("HEAD", "POST")] == [200, 405]
        answer = await client.get("/metrics", headers={"Authorization": f"Bearer {admin}"})
        found = _samples(answer.text)
        assert found["llm_router_sends_total"][1] == 1
        assert found["llm_router_quota_remaining_ratio"][1] == pytest.approx(0.9)
        assert "worker" not in found["llm_router_sends_total"][0]
        assert "process_cpu_seconds_total" in found
        assert not any(secret in answer.text for secret in ("AIza", admin, plain, "hello"))
        open_metrics = {"Authorization": f"Bearer {admin}", "Accept": "application/openmetrics-text"}
        assert "openmetrics" in (await client.get("/metrics", headers=open_metrics)).headers["content-type"]


async def test_without_tokens_metrics_are_open_to_this_machine() -> None:
    """A program of this machine reads them, no web page does; one of several workers says its name."""
    gateway = _gateway(Metrics("2 of 3"))
    async with _client(gateway) as client, gateway.router:
        answers = await asyncio.gather(client.get("/metrics"), client.get("/metrics"))
        for answer in answers:
            assert answer.status_code == 200
        assert all(labels["worker"] == "2 of 3" for labels, _ in _samples(answers[0].text).values())
        assert (await client.get("/metrics", headers={"host": "evil.example"})).status_code == 403
        assert (await client.get("/metrics", headers={"origin": "http://evil.example"})).status_code == 403


async def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client the answer is a 501 that says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    gateway = _gateway(Metrics())
    async with _client(gateway) as client, gateway.router:
        answer: Any = await client.get("/metrics")
        assert (answer.status_code, "[prometheus]" in answer.text) == (501, True)
        assert gateway.metrics is not None
        assert gateway.metrics.observers == ()
