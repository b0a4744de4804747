from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

GENERATE = "/v1beta/models/workload:light:generateContent"
BODY = json.dumps({"contents": [{"parts": [{"text": "hello"}]}]}).encode()


def _url(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().partition("listens on ")[2].partition(";")[0]


def _ask(url: str, **headers: str) -> Any:
    return urllib.request.urlopen(urllib.request.Request(url + GENERATE, BODY, headers), timeout=20)


def _until_model(
    child: subprocess.Popen[str], url: str, model: str, *, hang_up: bool, in_a_row: int = 6
) -> None:
    """Ask until the answers come from a model, also after the process was told to read its files again."""
    models: list[str | None] = []
    deadline = time.monotonic() + 20
    while models[-in_a_row:] != [model] * in_a_row:
        assert time.monotonic() < deadline, models
        if hang_up:
            child.send_signal(signal.SIGHUP)
        time.sleep(0.02)
        with _ask(url) as answer:
            models.append(answer.headers["x-llm-router-model"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--watch",), ("--demo",), ("--workers", "2")])
def test_serves_until_sigterm(
    start: Callable[..., subprocess.Popen[str]], home: Path, options: tuple[str, ...]
) -> None:
    """It answers through the pool, or its own emulator, follows its files, and ends when told to, with 0."""
    child = start("serve", "--port", 0, *options, stdin=subprocess.DEVNULL)
    url = _url(child)
    with _ask(url) as answer:
        assert b"echo: hello" in answer.read()
    if "--demo" not in options:
        keys, hang_up = home / "keys.json", "--watch" not in options
        whole = json.loads(keys.read_text())
        keys.write_text("{")
        if hang_up:
            child.send_signal(signal.SIGHUP)
        assert child.stderr is not None
        notice, complaint = child.stderr.readline(), child.stderr.readline()
        assert ("no tokens" in notice, "is not JSON" in complaint) == (True, True)
        assert "goes on as before" in complaint
        whole["keys"][0]["model_name"] = "model-m"
        keys.write_text(json.dumps(whole))
        _until_model(child, url, "model-m", hang_up=hang_up)
    with urllib.request.urlopen(url + "/metrics", timeout=20) as answer:
        assert (b'worker="' in answer.read()) == ("--workers" in options)
    with urllib.request.urlopen(url + "/page/events", timeout=20) as viewed:
        assert viewed.readline().startswith(b"data: ")
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=20)  # who looks at the page does not hold it up
    assert child.returncode == 0
    assert "AIza" not in out + err
    assert "Traceback" not in err


@pytest.mark.slow
def test_with_tokens_it_asks_for_one(
    run: Callable[..., Result], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A token is printed once and opens the gateway, on any address; without it the answer is a 401."""
    added = run("tokens", "add", "ann", "--rpm", 5, "--workload", "light")
    token = added.stdout.strip()
    listed = run("tokens", "list").stdout
    assert ("ann" in listed, "light" in listed, token in listed) == (True, True, False)
    child = start("serve", "--port", 0, "--host", "0.0.0.0", "--workers", 2)
    url = _url(child).replace("0.0.0.0", "127.0.0.1")
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        _ask(url)
    refused.value.close()
    with _ask(url, **{"x-goog-api-key": token}) as answer:
        assert b"echo: hello" in answer.read()
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, token in out + err) == (0, False)
    assert run("tokens", "remove", "ann").exit_code == 0
    told = run("serve", "--port", 0, "--demo").stderr
    assert ("tokens add" in told, "or remove the file" in told) == (True, True)


@pytest.mark.slow
def test_what_it_refuses(run: Callable[..., Result]) -> None:
    """Other addresses without tokens, and a store that workers could not share, are told in one line."""
    for options, word in (
        (("--host", "0.0.0.0"), "127.0.0.1"),
        (("--workers", 2, "--store", "memory://"), "sqlite"),
        (("--max-wait", "inf"), "--max-wait"),
        (("--watch", "--demo"), "--watch"),
    ):
        result = run("serve", "--port", 0, *options)
        assert (result.exit_code, word in result.stderr) == (2, True)
