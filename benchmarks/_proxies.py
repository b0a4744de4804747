"""Gateways of others, each started from an environment of its own, in front of the emulator."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
from _peers import NotInstalledError
from _subjects import FREE, MODEL, PROMPT_TOKENS, answers, free_port, scratch

__all__ = ["PROXIES", "Proxy", "Serving"]

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_VERSIONS = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
_LAST = 120
"""Most characters of what a gateway says that does not start."""


@attrs.frozen
class Serving:
    """A gateway that serves.

    Attributes:
        url: Where.
        token: What it takes as a bearer token, and where the key of the Gemini API is sent.
        pid: The number of its process.
        version: Its version.
    """

    url: str
    token: str
    pid: int
    version: str

    def cpu_seconds(self) -> float:
        """Return how many seconds of CPU time its process has used, to a hundredth or so."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@attrs.frozen
class _Setup:
    """How a gateway is run: the arguments of its command, and what it finds in its environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


@attrs.frozen
class Proxy:
    """A gateway to compare with.

    Attributes:
        name: Its name.
        packages: The distributions that it needs; the first one is its own, and names its command.
        install: What to give pip.
        variable: The environment variable that names the interpreter it is installed for; by default, it is
            this one.
        chats: Whether it is called in OpenAI's protocol instead of Gemini's.
        streams: Whether it can stream.
        keys: How many keys it has.
        lacks: How it differs.
        setup: Makes the configuration for a folder, an emulator, a port and a token.
    """

    name: str
    packages: tuple[str, ...]
    install: str
    variable: str
    chats: bool
    streams: bool
    keys: int
    lacks: str
    setup: Callable[[Proxy, Path, str, int, str], _Setup]

    @contextmanager
    def serving(self, emulator: str) -> Iterator[Serving]:
        """Run the gateway in front of an emulator.

        Raises:
            NotInstalledError: It is not installed, does not start, or could not be measured here.
        """
        python = os.environ.get(self.variable) or sys.executable
        version = self._version(python)
        if not Path("/proc/self/stat").exists():
            raise NotInstalledError("not measured: its CPU time is read from /proc")
        with scratch() as folder:
            port, token = free_port(), f"sk-{secrets.token_hex(32)}"
            setup = self.setup(self, folder, emulator, port, token)
            command = [str(Path(python).with_name(self.packages[0])), *setup.arguments]
            with (folder / "output").open("wb") as output:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**os.environ, **setup.environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            try:
                if not answers(process, port, _START_SECONDS):
                    raise NotInstalledError(f"does not start: {_last_words(folder / 'output')}")
                yield Serving(f"http://127.0.0.1:{port}", token, process.pid, version)
            finally:
                _stop(process)

    def _version(self, python: str) -> str:
        try:
            command = [python, "-c", _VERSIONS, *self.packages]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            raise NotInstalledError(f"not installed ({self.install}; {self.variable})") from None
        return found.stdout.split()[0]


def _write(folder: Path, settings: Mapping[str, object]) -> str:
    """Write a file of settings, as JSON, which is YAML, too; return its path."""
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    return str(config)


def _litellm(proxy: Proxy, folder: Path, emulator: str, port: int, token: str) -> _Setup:
    entry = {"model": f"gemini/{MODEL}", "api_base": f"{emulator}/v1beta", "rpm": FREE, "tpm": FREE}
    models = [
        {"model_name": MODEL, "litellm_params": {**entry, "api_key": f"emulated-secret-{number}"}}
        for number in range(proxy.keys)
    ]
    config = _write(folder, {"model_list": models})
    return _Setup(
        ("--config", config, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"),
        {
            "LITELLM_MASTER_KEY": token,  # without which it does not start
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
        },
    )


def _gemini_router(proxy: Proxy, folder: Path, emulator: str, port: int, token: str) -> _Setup:
    limits = {"rpm": FREE, "tpm": FREE * PROMPT_TOKENS, "rpd": FREE}
    settings = {"chain": [MODEL], "limits_per_key_model": limits, "state_path": str(folder / "state.db")}
    urls = {"base_url": f"{emulator}/v1beta", "upload_base_url": f"{emulator}/upload/v1beta"}
    config = _write(folder, {**settings, **urls})
    return _Setup(
        ("proxy", "--port", str(port)),
        {
            "GEMINI_API_KEYS": ",".join(f"emulated-secret-{number}" for number in range(proxy.keys)),
            "GEMINI_ROUTER_CONFIG": config,
            "GEMINI_ROUTER_PROXY_TOKEN": token,
        },
    )


PROXIES = (
    Proxy(
        name="LiteLLM's proxy",
        packages=("litellm", "litellm-proxy-extras"),
        install="litellm[proxy]",
        variable="LITELLM_PYTHON",
        chats=True,
        streams=True,
        keys=20,
        lacks="20 deployments; chat/completions, which it translates; reserves nothing",
        setup=_litellm,
    ),
    Proxy(
        name="gemini-router",
        packages=("gemini-router",),
        install="gemini-router",
        variable="GEMINI_ROUTER_PYTHON",
        chats=False,
        streams=False,
        keys=10,
        lacks="10 keys, one SQLite ledger; does not relay streams",
        setup=_gemini_router,
    ),
)
"""The gateways, each used as its documentation shows."""


def _last_words(output: Path) -> str:
    said = output.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(said) if line.strip()), "it says nothing")
    return last.strip()[:_LAST]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)
