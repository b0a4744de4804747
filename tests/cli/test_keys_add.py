"""``llm-router keys add`` and ``keys list``."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llm_router.cli.app import app

SECRET = "AIzaSy-secret-that-is-added-0123456789"
ADDING = "llm_router.config.adding"
OF_KEY_HEAVY = "AIzaSy-test-secret-of-key-heavy"


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}


def test_a_key_is_added_from_a_pipe(run: Callable[..., Result], home: Path) -> None:
    """The secret is the first line, proposals answer the rest; then the key is there and works."""
    (home / ".env").write_text("# mine\nOTHER=1")
    result = run("keys", "add", input=f"{SECRET}\n")
    assert (result.exit_code, SECRET in result.output) == (0, False)
    assert (
        "added: gemini-key-01 (project gemini-key-01): model-l=light, model-m=medium, model-h=heavy"
        in result.stdout
    )
    assert (home / ".env").read_text() == f"# mine\nOTHER=1\nAPI_KEY_gemini_key_01={SECRET}\n"
    assert (home / ".env").stat().st_mode & 0o777 == 0o600
    entries = json.loads((home / "keys.json").read_text())["keys"]
    assert entries[3:] == [
        {
            "key_id": "gemini-key-01",
            "provider": "gemini",
            "project": "gemini-key-01",
            "model_name": f"model-{workload[0]}",
            "tags": {"workload": workload, "priority": 1},
        }
        for workload in ("light", "medium", "heavy")
    ]
    rows = json.loads(run("keys", "list", "--json").stdout)
    assert rows[-1] == {
        "key_id": "gemini-key-01",
        "project": "gemini-key-01",
        "models": {"model-l": "light", "model-m": "medium", "model-h": "heavy"},
        "active": True,
        "secret_set": True,
        "secret_problem": None,
    }
    assert run("check").exit_code == 0


def test_options_say_the_rest(run: Callable[..., Result], home: Path) -> None:
    """A key of a project has the limits of that project; a model's name speaks for its workload."""
    entry = {"key_id": "a", "project": "p", "model_name": "m-pro", "limits": {"rpm": 3, "rpd": "learn"}}
    (home / "keys.json").write_text(json.dumps({"keys": [entry]}))
    (home / ".env").write_text(f"API_KEY_a={SECRET}-a\n")
    options = ("b", "--project", "p", "--model", "models/m-pro", "--model", "new=light", "--priority", 0)
    assert run("keys", "add", *options, input=f"{SECRET}\n").exit_code == 0
    added = json.loads((home / "keys.json").read_text())["keys"][1:]
    assert [each["model_name"] for each in added] == ["m-pro", "new"]
    assert added[0]["tags"] == {"workload": "heavy", "priority": 0}
    assert added[0]["limits"] == {"rpm": 3, "rpd": "learn"}
    assert "limits" not in added[1]


def test_a_variable_that_is_set_already_is_used(
    run: Callable[..., Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret is not asked for, .env is not touched; a keys file is made where there is none.

    What is named to try a key with can be done with its models.
    """
    (home / "keys.json").unlink()
    monkeypatch.setenv("API_KEY_new", SECRET)
    result = run("keys", "add", "new", "--model", "x-flash-lite")
    assert (result.exit_code, "API_KEY_new is set already" in result.stderr) == (0, True)
    assert list(files(home)) == ["keys.json"]
    assert run("check").exit_code == 0
    assert "try it with: llm-router keys test new" in result.stdout
    added = run("keys", "add", "other", "--model", "x-embedding", input=f"{SECRET}-b\n").stdout
    assert "try it with: llm-router check --online" in added
    tested = run("keys", "test", "other")
    assert (tested.exit_code, "`llm-router check --online`" in tested.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        (("key-light",), SECRET, "there is a key 'key-light' already"),
        (("new",), OF_KEY_HEAVY, "key 'key-heavy' has the same secret already"),
        (("new",), "", "the secret is empty"),
        (("new",), f'"{SECRET}"', "has a quotation mark at its end"),
        (("new",), "your-key-here", "is a placeholder"),
        (("key.light",), "", "the same as that of"),
        (("new", "--model", "m=wrong"), SECRET, "unknown workload 'wrong'"),
        (("new", "--model", "=light"), SECRET, "names no model"),
        (("new", "--project", " p "), SECRET, "without spaces around it"),
        (("new", "--model", SECRET), SECRET, "an argument looks like a secret"),
        (("new", "--model", f"m={SECRET}"), SECRET, "an argument looks like a secret"),
        ((SECRET,), SECRET, "an argument looks like a secret"),
        (("new", "--keys", "nowhere/keys.json", "--model", "m"), SECRET, "nowhere is not a directory"),
        (("a\tb", "--model", "x"), SECRET, "without control characters"),
    ],
)
def test_what_is_wrong_changes_nothing(
    run: Callable[..., Result], home: Path, arguments: tuple[str, ...], given: str, words: str
) -> None:
    """The exit code is 2, the message names what is wrong, no character of a secret is in it."""
    before = files(home)
    result = run("keys", "add", *arguments, input=f"{given}\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert SECRET not in result.stderr
    assert files(home) == before


def test_files_that_are_wrong_are_not_edited(run: Callable[..., Result], home: Path) -> None:
    """Neither a keys file with errors, nor a .env with an open quotation mark; nothing is left behind."""
    (home / ".env").write_text('A="open\n')
    for text, secret in (
        ("{", SECRET),
        ('{"keys": [{"key_id": "a"}]}', SECRET),
        ((home / "keys.json").read_text(), f'{SECRET}"x'),
    ):
        (home / "keys.json").write_text(text)
        before = files(home)
        result = run("keys", "add", "new", "--model", "m", input=f"{secret}\n")
        assert (result.exit_code, files(home) == before) == (2, True), result.output
        assert SECRET not in result.output


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_list_fits_a_terminal(
    watch: Callable[..., tuple[Any, str]], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Keys, models and what is missing; no line is wider than the screen."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("API_KEY_key_heavy")
    code, text = watch("keys", "list")
    assert code == 0
    text = re.sub(r"\x1b\[[0-9;]*m|\r", "", text)
    assert all(len(line) <= columns for line in text.split("\n"))
    assert "key-medium" in text
    assert re.search(
        r"key-heavy +(project )?key-heavy\s+(models )?model-h \(heavy\)\s+(active )?yes +(secret )?no", text
    )


@pytest.mark.slow
def test_a_secret_is_not_echoed(home: Path, terminal: Callable[..., Any]) -> None:
    """What is typed shows, but for the secret, which is in no argument either; Ctrl-C changes nothing."""
    before = files(home)
    typed = terminal("keys", "add")
    typed.answer("Its key_id [gemini-key-01]: ", "typed-id\n")
    typed.answer("Its project, which shares its quotas [typed-id]: ", "\n")
    typed.answer("Its models [", "model-l=heavy\n")
    typed.read_until("(not shown): ")
    arguments = Path(f"/proc/{typed.child.pid}/cmdline")
    assert SECRET not in (arguments.read_text() if arguments.exists() else "")
    os.write(typed.master, f"{SECRET}\n".encode())
    typed.read_until("keys test typed-id")
    assert typed.close() == 0
    assert "typed-id\r\n" in typed.shown
    assert SECRET not in typed.shown
    assert SECRET in (home / ".env").read_text()
    added = files(home)
    typed = terminal("keys", "add", "other", "--project", "p", "--model", "m")
    typed.answer("(not shown): ", "half-a-secret\x03")
    typed.read_until("interrupted")
    assert (typed.close(), files(home)) == (130, added)
    assert "half-a-secret" not in typed.shown
    assert added.keys() - before.keys() == {".env"}


@pytest.mark.parametrize("failing", ["read", "check", "write"])
def test_no_traceback_shows_a_secret(home: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Wherever it fails: neither the new secret, nor those that are in .env."""
    (home / ".env").write_text("API_KEY_other=Kept-in-the-file-0123456789\n")
    places = {
        "read": f"{ADDING}.with_variable",
        "check": f"{ADDING}.examine",
        "write": f"{ADDING}.replace_files",
    }

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{SECRET}\n"))
    monkeypatch.setattr(places[failing], fail)
    with pytest.raises(RuntimeError) as caught:
        app(["keys", "add", "new"], standalone_mode=False)
    frames = traceback.walk_tb(caught.value.__traceback__)
    shown = [repr(frame.f_locals) for frame, _ in frames if "llm_router" in frame.f_code.co_filename]
    assert len(shown) > 2
    assert not any(word in text for text in shown for word in (SECRET, "Kept-in-the-file"))
