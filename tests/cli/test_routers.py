"""The store of a command: commands that could not share their quotas stop, and say what to set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llm_router.testing import GeminiEmulator

COMMANDS = (
    ("send", "x"),
    ("compare", "x"),
    ("status",),
    ("batch", "in.jsonl", "-o", "out.jsonl"),
)


@pytest.fixture
def prompts(home: Path) -> Path:
    """A file of prompts for the batch."""
    (home / "in.jsonl").write_text('{"prompt": "x"}\n')
    return home


@pytest.mark.slow
@pytest.mark.parametrize("args", COMMANDS)
@pytest.mark.parametrize("named", [False, True])
def test_a_state_file_that_cannot_be_written_is_2(
    run: Callable[..., Result],
    prompts: Path,
    emulator: GeminiEmulator,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[Any, ...],
    named: bool,
) -> None:
    """A command whose state would be lost sends nothing, and says what is in the way and what to set."""
    (prompts / "file").touch()
    if named:
        args = (*args, "--store", f"sqlite:///{prompts}/file/state.sqlite3")
    else:
        monkeypatch.setenv("XDG_STATE_HOME", str(prompts / "file"))
    for _ in range(8):
        result = run(*args)
        assert result.exit_code == 2
        assert f"{str(prompts / 'file')!r} is not a directory" in result.stderr
        assert "set LLM_ROUTER_STORE, or --store, to the URL of a store that can be written" in result.stderr
    assert emulator.requests == 0
    assert not (prompts / "out.jsonl").exists()


EVERY = (
    *COMMANDS,
    ("explain", "x"),
    ("top", "--once"),
    ("keys", "lift", "key-light"),
    ("keys", "disable", "key-light"),
    ("keys", "enable", "key-light"),
    ("keys", "limits", "key-light", "--forget"),
    ("keys", "test"),
    ("serve", "--port", "0"),
)


@pytest.mark.parametrize("args", EVERY)
@pytest.mark.parametrize("broken", ["mkdir", "foreign", "homeless"])
def test_a_state_file_that_cannot_be_made_is_2(
    run: Callable[..., Result],
    prompts: Path,
    emulator: GeminiEmulator,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    broken: str,
) -> None:
    """Also where permissions would allow it, on whatever command: it says what to set and sends nothing."""
    if broken == "foreign":
        (prompts / "notes.txt").write_text("not a database")
        monkeypatch.setenv("LLM_ROUTER_STORE", f"sqlite:///{prompts}/notes.txt")
    elif broken == "homeless":
        monkeypatch.setattr("platformdirs.user_state_path", lambda *_: Path("~/.local/state"))
        monkeypatch.setenv("LLM_ROUTER_TOKEN_FILE", "")
    else:
        monkeypatch.setenv("XDG_STATE_HOME", str(prompts / ("n" * 300)))
    result = run(*args)
    assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
    assert "set LLM_ROUTER_STORE" in result.stderr or "XDG_STATE_HOME, or LLM_ROUTER_" in result.stderr
    assert emulator.requests == 0


@pytest.mark.slow
def test_another_store_helps(
    run: Callable[..., Result], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store that the message asks for is used."""
    (prompts / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(prompts / "file"))
    monkeypatch.setenv("LLM_ROUTER_STORE", f"sqlite:///{prompts}/other/state.sqlite3")
    assert run("send", "x").exit_code == 0
    assert (prompts / "other" / "state.sqlite3").is_file()


def test_a_state_directory_with_an_odd_name(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A # or a ? in the path of the state directory does not cut it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "a#b?c 100%"))
    assert run("send", "x").exit_code == 0
    assert (home / "a#b?c 100%" / "llm_router" / "state.sqlite3").is_file()


@pytest.mark.parametrize("args", COMMANDS[:2])
def test_a_store_that_does_not_answer_means_that_nothing_is_sent(
    run: Callable[..., Result], emulator: GeminiEmulator, args: tuple[str, str]
) -> None:
    """With a share of the quotas for each, command after command would break them."""
    result = run(*args, "--store", "redis://127.0.0.1:1/0", "--json")
    assert result.exit_code == 1
    assert "the state store failed" in result.stdout
    assert emulator.requests == 0


@pytest.mark.parametrize("args", [*COMMANDS, ("check",)])
def test_a_store_of_the_environment_that_cannot_be_opened_is_2(
    run: Callable[..., Result],
    prompts: Path,
    emulator: GeminiEmulator,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
) -> None:
    """A wrong URL in the environment is named by its variable, and shows no password."""
    monkeypatch.setenv("LLM_ROUTER_STORE", "redis://u:hunter2@host:port")
    result = run(*args)
    assert result.exit_code == 2
    assert "LLM_ROUTER_STORE in the environment" in result.stdout + result.stderr
    assert "hunter2" not in result.stdout + result.stderr
    assert emulator.requests == 0


def test_an_option_takes_the_place_of_the_environment(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong URL in the environment does not matter if --store names another store."""
    monkeypatch.setenv("LLM_ROUTER_STORE", "redis://host:port")
    assert run("send", "x", "--store", "memory://").exit_code == 0


def test_check_warns_of_a_state_directory_that_cannot_be_written(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may do without the state directory, so that a check only warns of it."""
    (home / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    result = run("check", "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["level"], finding["where"]) == (0, "warning", "LLM_ROUTER_STORE")


@pytest.mark.parametrize("value", ["nan", "-1", "-inf"])
@pytest.mark.parametrize("option", ["--timeout", "--max-wait"])
def test_a_number_that_cannot_be_meant_is_2(
    run: Callable[..., Result], emulator: GeminiEmulator, option: str, value: str
) -> None:
    """An option with NaN or a negative number is refused by its name."""
    result = run("send", "x", option, value)
    assert result.exit_code == 2
    assert option.strip("-").replace("-", "_") in result.stderr.replace("-", "_")
    assert emulator.requests == 0


@pytest.mark.parametrize("value", ["1e13", "1e305", "inf"])
def test_numbers_that_are_large(run: Callable[..., Result], value: str) -> None:
    """Endless timeouts and waits are what they seem."""
    assert run("send", "x", "--timeout", value, "--max-wait", value).exit_code == 0


def test_check_names_the_variable_of_a_wrong_secret(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check finds a secret with quotation marks, and shows no character of it."""
    monkeypatch.setenv("API_KEY_key_light", '"Qx7kZp93LmVt20WsRb81"')
    result = run("check")
    assert result.exit_code == 2
    assert "API_KEY_key_light in the environment has a quotation mark at its end" in result.stdout
    assert "Qx7" not in result.stdout


def test_check_warns_of_a_user_without_a_home_directory(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error, and not said where the environment names a store."""
    monkeypatch.setattr("platformdirs.user_state_path", lambda *_: Path("~/.local/state"))
    result = run("check", "--json")
    (finding,) = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["level"], finding["where"]) == (0, "warning", "LLM_ROUTER_STORE")
    assert "no home directory" in finding["message"]
    monkeypatch.setenv("LLM_ROUTER_STORE", "memory://")
    assert json.loads(run("check", "--json").stdout)["findings"] == []
