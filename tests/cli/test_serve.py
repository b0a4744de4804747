from __future__ import annotations

import json
import signal
import subprocess
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


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--demo",), ("--workers", "2")])
def test_serves_until_sigterm(start: Callable[..., subprocess.Popen[str]], options: tuple[str, ...]) -> None:
    """It answers through the pool, or through its own emulator, and ends with 0 when it is told to stop."""
    child = start("serve", "--port", 0, *options)
    url = _url(child)
    with _ask(url) as answer:
        assert b"echo: hello" in answer.read()
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
    assert "tokens add" in run("serve", "--port", 0).stderr


@pytest.mark.slow
def test_what_it_refuses(run: Callable[..., Result]) -> None:
    """Other addresses without tokens, and a store that workers could not share, are told in one line."""
    for options, word in (
        (("--host", "0.0.0.0"), "127.0.0.1"),
        (("--workers", 2, "--store", "memory://"), "sqlite"),
        (("--max-wait", "inf"), "--max-wait"),
    ):
        result = run("serve", "--port", 0, *options)
        assert (result.exit_code, word in result.stderr) == (2, True)
