"""``llm-router init``, and ``check --online``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llm_router.config.proposals import next_key_id, proposed_models, workload_for
from llm_router.domain.queries import ModelInfo
from llm_router.emulator import GeminiEmulator

SECRETS = [f"AIzaSy-secret-of-init-{number}" for number in range(5)]
NEWEST = {"gemini-3.5-flash-lite": "light", "gemini-3.8-flash": "medium", "gemini-pro-latest": "heavy"}
MODELS = [
    *NEWEST,
    "gemini-2.5-flash",
    "gemini-2.5-flash-image",
    "gemini-3.1-pro-preview",
    "gemini-3.10-flash-preview",
    "gemini-embedding-001",
    "gemini-flash-latest",
    "gemma-9-27b-it",
    "imagen-5",
]
WORKLOADS = ("light", "medium", "heavy")


@pytest.fixture(scope="module")
def served_models() -> Iterator[GeminiEmulator]:
    """An emulator with models, and three keys in two projects; it does not know the others."""
    keys = dict(zip(SECRETS, ("A", "A", "B"), strict=False))
    with GeminiEmulator(keys=keys, models=MODELS).run_in_thread() as emulator:
        yield emulator


@pytest.fixture
def bare(
    home: Path, served_models: GeminiEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GeminiEmulator]:
    """A directory without a keys file and an environment without secrets."""
    (home / "keys.json").unlink()
    for workload in WORKLOADS:
        monkeypatch.delenv(f"API_KEY_key_{workload}")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", served_models.url)
    yield served_models
    served_models.reset()


def test_everything_is_made_from_piped_secrets(
    run: Callable[..., Result], home: Path, bare: GeminiEmulator
) -> None:
    """Projects are proven, workloads proposed, dead keys and twins left out; check likes what it made."""
    (home / ".env").write_text(f"# mine\nAPI_KEY_old_one={SECRETS[2]}\n")
    given = [SECRETS[0], SECRETS[1], SECRETS[0], SECRETS[3]]
    result = run("init", "--yes", "--projects", "--reuse", input="\n".join(given))
    assert result.exit_code == 1
    assert "that is the secret of gemini-key-01: left out" in result.stderr
    assert "does not accept the key" in result.stderr
    keys = json.loads((home / "keys.json").read_text())["keys"]
    rows = [(each["project"], each["model_name"], each["tags"]["workload"]) for each in keys]
    assert {model: workload for _, model, workload in rows} == NEWEST
    assert [project for project, _, _ in rows] == ["old-one"] * 3 + ["project-2"] * 6
    lines = (home / ".env").read_text().splitlines()
    assert lines[:2] == ["# mine", f"API_KEY_old_one={SECRETS[2]}"]
    assert sorted(line.partition("=")[2] for line in lines[2:]) == SECRETS[:2]
    assert not any(secret in result.output for secret in SECRETS)
    checked = run("check")
    assert checked.stdout.splitlines() == ["keys.json: no problems found", result.stdout.splitlines()[-1]]
    assert checked.stdout.splitlines()[1].startswith(
        "3 keys in 2 projects; light to be learnt; medium to be learnt; heavy"
    )
    assert bare.requests == 0


@pytest.mark.slow
def test_it_overwrites_only_if_forced(run: Callable[..., Result], home: Path, bare: GeminiEmulator) -> None:
    """A keys file that exists stays; with --force it is made anew, from the secrets that are there."""
    (home / "keys.json").write_text("mine")
    result = run("init", "--yes", input=SECRETS[0])
    assert (result.exit_code, "--force" in result.stderr) == (2, True)
    assert (home / "keys.json").read_text() == "mine"
    assert run("init", "--yes", "--force", input=SECRETS[0]).exit_code == 0
    made = (home / "keys.json").read_text()
    assert run("init", "--yes", "--force").exit_code == 2
    for options in (("--reuse",), ()):
        result = run("init", "--yes", "--force", *options, input="" if options else SECRETS[0])
        assert (result.exit_code, (home / "keys.json").read_text() == made) == (0, True)
    assert (home / "keys.json").read_text() == made


@pytest.mark.parametrize(
    ("arguments", "given", "code", "words"),
    [
        ((), SECRETS[0], 2, "pass --yes"),
        (("--yes",), "", 2, "no secret was given"),
        (("--yes",), "your-key-here", 2, "is a placeholder"),
        (("--yes",), SECRETS[4], 1, "no key is known to be alive"),
        (("--yes", "--timeout", "0.001"), SECRETS[0], 1, "no answer within 0.001 s"),
        (("--yes", "nowhere/keys.json"), SECRETS[0], 2, "nowhere"),
    ],
)
def test_nothing_is_written_if_it_fails(
    run: Callable[..., Result],
    home: Path,
    bare: GeminiEmulator,
    arguments: tuple[str, ...],
    given: str,
    code: int,
    words: str,
) -> None:
    """The message says why."""
    result = run("init", *arguments, input=given)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    assert not [path for path in home.iterdir() if path.is_file()]


@pytest.mark.slow
def test_check_online(run: Callable[..., Result], home: Path, bare: GeminiEmulator) -> None:
    """Which keys are alive, and which models they are not served; nothing is generated."""
    entries: list[dict[str, Any]] = [
        {"key_id": "a", "models": ["gemini-3.8-flash", "gemini-3.8-flahs"], "project": "p"},
        {"key_id": "b", "model_name": "gemini-pro-latest", "project": "q"},
    ]
    (home / "keys.json").write_text(json.dumps({"keys": entries}))
    (home / ".env").write_text(f"API_KEY_a={SECRETS[0]}\nAPI_KEY_b={SECRETS[4]}\n")
    result = run("check", "--online")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-3:-1] == [
        f"a: alive, is served {len(MODELS)} models",
        "a: is not served 'gemini-3.8-flahs': did you mean 'gemini-3.8-flash'?",
    ]
    assert "b: not alive, or not known: the provider does not accept the key (400" in result.stdout
    assert not any(secret in result.output for secret in SECRETS)
    (home / "keys.json").write_text(json.dumps({"keys": [{**entries[0], "models": list(NEWEST)}]}))
    result = run("check", "--online", "--json")
    [found] = json.loads(result.stdout)["online"]
    assert (result.exit_code, found["alive"], found["reason"], found["missing"]) == (0, True, None, {})
    assert found["models"] == MODELS
    (home / "keys.json").write_text("{")
    assert run("check", "--online").exit_code == 2


@pytest.mark.slow
def test_it_asks_on_a_terminal(
    home: Path, bare: GeminiEmulator, terminal: Callable[..., Any], run: Callable[..., Result]
) -> None:
    """Secrets are not echoed, wrong answers are asked for again; Ctrl-C at the end writes nothing."""
    (home / ".env").write_text("API_KEY_other=Not-for-Google-0123456789\n")
    typed = terminal("init")
    typed.answer("Use what is set already (API_KEY_other)? [no]: ", "\n")
    typed.answer("gemini-key-01 (not shown; nothing to end): ", "'wrong'\n")
    typed.answer("try again\r\nThe secret of gemini-key-01 (not shown; nothing to end): ", f"{SECRETS[0]}\n")
    typed.answer("gemini-key-02 (not shown; nothing to end): ", f"{SECRETS[2]}\n")
    typed.answer("gemini-key-03 (not shown; nothing to end): ", "\n")
    typed.answer("heavy]: ", "gemini-3.8-flash=wrong\n")
    typed.answer("heavy]: ", "gemini-3.8-flash=heavy, gemini-2.5-flash\n")
    typed.answer("and removed? [yes]: ", "no\n")
    typed.answer("Project of gemini-key-01 [gemini-key-01]: ", "\n")
    typed.answer("Project of gemini-key-02 [gemini-key-02]: ", "\x03")
    typed.read_until("interrupted")
    assert typed.close() == 130
    assert not any(secret in typed.shown for secret in SECRETS)
    assert [path.name for path in home.iterdir() if path.is_file()] == [".env"]


def test_proposals() -> None:
    """By the words of a name; the settled before the previews, the newest first, none of another trade."""
    assert proposed_models([ModelInfo(name=name) for name in MODELS], WORKLOADS) == NEWEST
    assert proposed_models([ModelInfo(name=MODELS[5])], WORKLOADS) == {MODELS[5]: "heavy"}
    assert proposed_models([ModelInfo(name="gemini-9-flash", methods=("embedContent",))], WORKLOADS) == {}
    assert proposed_models([ModelInfo(name="gemini-9-pro")], ["only"]) == {"gemini-9-pro": "only"}
    assert workload_for("gemini-9", WORKLOADS) == "medium"
    for known, proposed in (
        ([], "gemini-key-01"),
        (["gemini-key-01"], "gemini-key-02"),
        (["a{9}9", "b"], "a{9}10"),
        (["k-2", "x", "k-3", "k-1"], "k-4"),
        (["mine"], "gemini-key-01"),
    ):
        assert next_key_id(known) == proposed
