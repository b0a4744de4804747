"""The SDKs from npm, unmodified, through the gateway: answers, faults, what their users catch."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from llm_router.emulator import Fault
from llm_router.gateway import answers

NODE = shutil.which("node")
MODULES = os.environ.get("LLM_ROUTER_NODE_MODULES")
SCRIPTS = Path(__file__).with_name("node")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NODE is None, reason="there is no Node on this machine"),
    pytest.mark.skipif(
        MODULES is None,
        reason="LLM_ROUTER_NODE_MODULES does not say where the packages of tests/gateway/node are installed",
    ),
]

Guarded = Any
ECHO = "[flash] echo: hello"
LONG, VERY_LONG = "long:400000", "long:20000000"
"""Prompts for answers of so many characters."""

LARGE = 5_000_000
"""How often four bytes are in an image of 20 MB."""


class Sdk:
    """A process of Node that does with one SDK what it is told, one line of JSON a command."""

    def __init__(self, name: str, folder: Path, url: str, token: str) -> None:
        self.name = name
        self._options = {"url": url, "token": token}
        self._numbers = itertools.count()
        self._said = folder / f"{name}.log"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [str(NODE), str(folder / f"{name}.mjs")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def do(self, command: str, **given: Any) -> Any:
        """Run a command; return the line that it answers."""
        return self.result(self.begin(command, **given))

    def begin(self, command: str, options: dict[str, Any] | None = None, **given: Any) -> int:
        """Begin a command; return its number."""
        number = next(self._numbers)
        told = {"id": number, "name": command, "options": self._options | (options or {}), **given}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return number

    def result(self, number: int) -> Any:
        """Wait for the command that was begun last; return the line that it answers."""
        assert self._process.stdout is not None
        is_there, _, _ = select.select([self._process.stdout], [], [], 30)
        line = self._process.stdout.readline() if is_there else ""
        assert line, self._said.read_text()
        told = json.loads(line)
        assert told.pop("id") == number
        return told

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="module")
def sdks(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sdk]]:
    """Provide a process for each SDK, whose modules are beside the scripts as in a project of a user."""
    folder = tmp_path_factory.mktemp("node")
    for script in SCRIPTS.glob("*.*"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(Path(str(MODULES)).resolve(), target_is_directory=True)
    served, tokens = guarded
    found = {name: Sdk(name, folder, served.url, tokens["ann"]) for name in ("genai", "openai")}
    yield found
    for sdk in found.values():
        sdk.close()


@pytest.fixture(params=["genai", "openai"])
def sdk(request: pytest.FixtureRequest, sdks: dict[str, Sdk]) -> Sdk:
    """Provide each SDK in turn."""
    return sdks[request.param]


@pytest.fixture
def genai(sdks: dict[str, Sdk]) -> Sdk:
    """Provide Google's."""
    return sdks["genai"]


@pytest.fixture
def openai(sdks: dict[str, Sdk]) -> Sdk:
    """Provide OpenAI's."""
    return sdks["openai"]


@pytest.fixture(autouse=True)
def emulator(exact: Any) -> Any:
    """Provide the emulator, in which the router has counted right after each test."""
    return exact


def _tool(sdk: Sdk) -> dict[str, Any]:
    declared = {"name": "add", "description": "Add numbers."}
    schema = {"type": "object", "properties": {"a": {"type": "number"}}}
    if sdk.name == "genai":
        return {"functionDeclarations": [declared | {"parametersJsonSchema": schema}]}
    return {"type": "function", "function": declared | {"parameters": schema}}


def test_answers(sdk: Sdk) -> None:
    """Texts, streams, calls of functions, and embeddings and models come as from the API itself."""
    whole = sdk.do("generate")["value"]
    assert (whole["text"], whole["calls"], whole["attempts"]) == (ECHO, [], "1")
    assert whole["total"] > 0
    assert "".join(sdk.do("stream")["pieces"]) == ECHO
    assert "".join(sdk.do("stream", model="workload:light")["pieces"]) == ECHO.replace("flash", "lite")
    (call,) = sdk.do("generate", text='call:add{"a": 1}', tools=[_tool(sdk)])["value"]["calls"]
    assert (call["name"], call["args"]) == ("add", {"a": 1})
    assert sdk.do("embed", texts=["a", "b"])["value"] == [768, 768]
    assert "models/flash" in sdk.do("models")["value"]


def test_what_only_gemini_has(genai: Sdk) -> None:
    """Token counts, chats, and what belongs to a project: files, cached contents, interactions."""
    assert genai.do("count")["value"] > 0
    assert genai.do("chat", texts=["one", "two"])["value"] == ["[flash] echo: one", "[flash] echo: two"]
    assert genai.do("file", text="hello")["value"]["text"] == "[flash] echo: read"
    assert genai.do("cache", text="word " * 5000)["value"] == ECHO
    assert genai.do("interact", texts=["one", "two"])["value"] == ["completed", "completed"]


@pytest.mark.parametrize(
    "fault", [Fault.bare_429(), Fault.list_429(), Fault.status(503), Fault.drop(), Fault.cut_json()]
)
def test_a_key_that_fails(sdk: Sdk, emulator: Any, guarded: Guarded, fault: Fault) -> None:
    """Another one answers, and the SDK sees nothing of it."""
    for command in ("generate", "stream"):
        if fault == Fault.cut_json() and command == "stream":
            continue  # it has passed before anybody can tell
        rule = emulator.inject(fault, times=1)
        told = sdk.do(command)
        assert (rule.taken, told.get("error")) == (1, None)
        assert told["value"] is None or told["value"]["attempts"] == "2"
        guarded[0].lift()


def _broken_stream(sdk: Sdk, served: Any, fault: Fault) -> Any:
    """Return what is told of a stream that fails in the middle.

    If nothing of it was passed on before it failed, another key has answered, and it is asked for again.
    """
    for _ in range(20):
        served.emulator.inject(fault, times=1)
        told = sdk.do("stream", text=LONG)
        served.lift()
        if "error" in told:
            return told
    raise AssertionError("it never failed")


def test_an_error_inside_a_stream(sdk: Sdk, guarded: Guarded) -> None:
    """What came before is there, and then the SDK's own class is thrown."""
    told = _broken_stream(sdk, guarded[0], Fault.stream_error(503, after=2))
    assert len(told["pieces"]) == 2
    # OpenAI's has no status for an error that came after a 200.
    expected = ("ApiError", 503, None) if sdk.name == "genai" else ("APIError", None, 503)
    assert (told["error"], told["status"], told["code"]) == expected
    assert "overloaded" in told["message"]


@pytest.mark.parametrize("fault", [Fault.stream_cut(after=2), Fault.stream_drop(after=2)])
def test_a_cut_in_the_middle(sdk: Sdk, guarded: Guarded, fault: Fault) -> None:
    """The SDK throws, also where the API ended its stream as if it were whole."""
    told = _broken_stream(sdk, guarded[0], fault)
    assert (told["error"], told["message"]) == ("TypeError", "terminated")
    assert 1 <= len(told["pieces"]) <= 2


def test_a_slow_reader(sdk: Sdk) -> None:
    """Who reads a long answer with pauses gets all of it."""
    told = sdk.do("stream", text="long:8000000", reading={"pausing": 50})
    assert "".join(told["pieces"]) == "x" * 8_000_000


def test_a_reader_that_is_stuck(
    sdk: Sdk, emulator: Any, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads nothing more of 20 MB is dropped, and takes that for no whole answer."""
    monkeypatch.setattr(answers, "_IDLE", 0.2)
    number = sdk.begin("stream", text=VERY_LONG, reading={"stuck": True})
    _until(lambda: emulator.accepted == 1)
    guarded[0].until_idle()
    sdk.begin("leave")
    assert len(sdk.result(number)["pieces"]) < 4


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


@pytest.mark.parametrize("fault", [Fault.hang(), Fault.stream_hang(after=1)])
def test_a_client_that_goes_away(sdk: Sdk, emulator: Any, guarded: Guarded, fault: Fault) -> None:
    """Its call ends at the API too, before the answer and inside it, and is counted once."""
    emulator.inject(fault, times=1)
    number = sdk.begin("stream")
    _until(lambda: emulator.holding == 1)
    sdk.begin("leave")
    guarded[0].until_idle()
    _until(lambda: emulator.holding == 0)
    told = sdk.result(number)
    assert len(told["pieces"]) < 4


def test_a_stream_of_which_only_the_beginning_is_read(sdk: Sdk) -> None:
    """Its quota is settled although the loop was left."""
    assert sdk.do("stream", reading={"most": 1})["pieces"] == ["[flas"]


def test_a_body_of_20_mb(sdk: Sdk) -> None:
    """It goes through."""
    assert sdk.do("generate", image=LARGE)["value"]["text"] == ECHO


def test_what_is_refused(sdk: Sdk, emulator: Any) -> None:
    """Broken JSON, unknown paths, methods and models, no token or a wrong one: as the API's own errors."""
    is_google = sdk.name == "genai"
    slash = "" if is_google else "/"
    chat = "models/flash:generateContent" if is_google else "/chat/completions"
    nameless = (
        {"headers": {"x-goog-api-key": ""}} if is_google else {"defaultHeaders": {"Authorization": None}}
    )
    for command, given, status, kind in (
        ("raw", {"path": chat, "body": "{"}, 400, "BadRequestError"),
        ("raw", {"path": f"{slash}nothing"}, 404, "NotFoundError"),
        ("raw", {"path": f"{slash}models/flash", "verb": "DELETE"}, 404, "NotFoundError"),
        ("generate", {"model": "unknown"}, 404, "NotFoundError"),
        ("generate", {"model": "text-embedding-9"}, 400, "BadRequestError"),
        ("generate", {"options": {"token": "wrong"}}, 401, "AuthenticationError"),
        ("generate", {"options": nameless}, 401, "AuthenticationError"),
    ):
        told = sdk.do(command, **given)
        assert (given, told["status"], told["error"]) == (given, status, "ApiError" if is_google else kind)
        assert told["message"].isascii()
        assert "no body" not in told["message"]
    assert emulator.requests == 0


def test_live_sessions_are_refused(genai: Sdk) -> None:
    """They need a websocket, which no gateway can share."""
    assert genai.do("live")["error"] == "Error"


def test_the_words_of_the_api(sdk: Sdk, emulator: Any) -> None:
    """What the API refuses comes with its own words, although Google's form is not OpenAI's."""
    refused = {"error": {"code": 400, "message": "No such field.", "status": "INVALID_ARGUMENT"}}
    # Reports say that what is refused so uses quota all the same.
    fault = attrs.evolve(Fault.status(400, body=refused if sdk.name == "genai" else [refused]), counted=True)
    emulator.inject(fault, times=1)
    told = sdk.do("generate")
    assert told["status"] == 400
    assert "No such field." in told["message"]


def test_no_quota(sdk: Sdk, emulator: Any) -> None:
    """It is the class of a 429 with a true delay, and an SDK that tries again by itself costs nothing."""
    model = "tiny" if sdk.name == "genai" else "small"
    for _ in range(2):
        assert "error" not in sdk.do("generate", model=model)
    told = sdk.do("generate", model=model)
    assert (told["status"], told["slept"]) == (429, [])
    if sdk.name == "genai":
        detail = json.loads(told["message"])["error"]["details"][0]
        assert 50 < float(detail["retryDelay"].rstrip("s")) < 61
        again: dict[str, Any] = {"retryOptions": {"attempts": 3}}
    else:
        assert (told["error"], told["code"]) == ("RateLimitError", "rate_limit_exceeded")
        assert 50 < int(told["retryAfter"]) <= 61
        again = {"maxRetries": 2}
    told = sdk.do("generate", model=model, options=again)
    assert told["status"] == 429
    if sdk.name == "openai":  # it is told not to wait for more than a minute
        assert all(each > 50_000 for each in told["slept"])
    else:  # Google's does not look at what it is told
        assert len(told["slept"]) == 2
    assert emulator.requests == 2


@pytest.mark.parametrize("seconds", [40, 7200])
def test_who_has_to_wait_is_told_for_how_long(openai: Sdk, emulator: Any, seconds: int) -> None:
    """OpenAI's SDK, which tries again by itself, waits as long as it is told; or not, if that is too long."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}
    error = {"code": 429, "message": "Spent.", "status": "RESOURCE_EXHAUSTED", "details": [info]}
    emulator.inject(Fault.status(429, body=[{"error": error}]), times=2)
    told = openai.do("generate", model="spare", options={"maxRetries": 2})
    assert (told["error"], emulator.requests) == ("RateLimitError", 2)
    if seconds == 7200:
        assert told["slept"] == []
        assert int(told["retryAfter"]) > 120
    else:
        assert [each in (39_000, 40_000) for each in told["slept"]] == [True, True]
