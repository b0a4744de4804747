"""``llm-router keys test`` and ``keys limits``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llm_router import Demand, Deployment, Key, Metric, Secret, open_store
from llm_router.cli.keys_limits import LimitRecord, how_known
from llm_router.domain.cooldown import Cooldown, LearntLimit
from llm_router.domain.deployment import ProjectDeployment
from llm_router.domain.limits import LimitSource
from llm_router.emulator import Fault, GeminiEmulator, QuotaSpec

PROJECTS = {"k-1": "A", "k-2": "A", "k-3": "B", "k-4": "C"}
SECRETS = {f"k-{number}": f"AIzaSy-secret-of-key-{number}" for number in range(1, 6)}
LITE, PRO = "m-flash-lite", "m-pro"


@pytest.fixture(scope="module")
def served_projects() -> Iterator[GeminiEmulator]:
    """An emulator with five keys in three projects; it does not know the fifth one."""
    keys = {SECRETS[key]: project for key, project in PROJECTS.items()}
    with GeminiEmulator(keys=keys, models=[LITE, PRO]).run_in_thread() as emulator:
        yield emulator


@pytest.fixture
def provider(
    served_projects: GeminiEmulator, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GeminiEmulator]:
    """The emulator, a keys file with the five keys, of which two are said to share a project, and a .env."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", served_projects.url)
    light, heavy = (
        {"model_name": model, "tags": {"workload": workload}}
        for model, workload in ((LITE, "light"), (PRO, "heavy"))
    )
    projects = {"k-3": "same", "k-4": "same"}
    entries = [
        {"key_id": key, "models": [heavy, light], **({"project": projects[key]} if key in projects else {})}
        for key in SECRETS
    ]
    (home / "keys.json").write_text(json.dumps({"keys": entries}))
    (home / ".env").write_text("".join(f"API_KEY_{k.replace('-', '_')}={s}\n" for k, s in SECRETS.items()))
    served_projects.set_quota(LITE, QuotaSpec(rpm=1), project="A")
    yield served_projects
    served_projects.reset()


@pytest.fixture
def tested(run: Callable[..., Result], provider: GeminiEmulator) -> Callable[..., tuple[int, Any]]:
    """Run keys test with --json; return the exit code and what it printed."""

    def tested(*args: object) -> tuple[int, Any]:
        result = run("keys", "test", "--json", *args)
        assert not any(secret in result.output for secret in SECRETS.values())
        return result.exit_code, json.loads(result.stdout)

    return tested


@pytest.mark.slow
def test_which_keys_are_alive(tested: Callable[..., tuple[int, Any]], provider: GeminiEmulator) -> None:
    """One request each, with the lightest model, which counts, so that the next test goes elsewhere.

    A 429 says that a key is valid; two that come together may be of one project.
    """
    code, found = tested()
    rows = {row["key_id"]: row for row in found["keys"]}
    assert (code, provider.requests) == (1, 5)
    assert {row["model"] for row in rows.values()} == {LITE}
    spent, alive = sorted(("k-1", "k-2"), key=lambda key: rows[key]["state"] == "alive")
    assert [rows[key]["state"] for key in (alive, spent, "k-3", "k-4", "k-5")] == [
        "alive",
        "spent",
        "alive",
        "alive",
        "dead",
    ]
    assert "although our count had room (429" in rows[spent]["reason"]
    assert [limit["limit"] for limit in rows[spent]["learnt"]] == [1]
    assert "does not accept the key (400" in rows["k-5"]["reason"]
    assert (found["coincidences"], found["projects"]) == ([], None)
    code, found = tested("k-1", "k-2")
    assert code == 0
    assert {row["key_id"]: row["model"] for row in found["keys"]}[spent] == PRO
    [hint] = found["coincidences"]
    assert hint.startswith(f"{alive}, {spent} were told their rpm of {LITE} together")
    assert provider.requests == 7


@pytest.mark.slow
def test_a_quarantined_key_is_tried_and_used_again(
    tested: Callable[..., tuple[int, Any]], provider: GeminiEmulator, run: Callable[..., Result]
) -> None:
    """A test is the request that tries it; a disabled key is left alone, and an outage blames no key."""
    provider.inject(Fault.status(401), times=2)
    for _ in range(2):
        assert tested("k-3")[1]["keys"][0]["state"] == "dead"
    assert "quarantined" in run("status").stdout
    assert tested("k-3")[0] == 0
    assert "quarantined:" not in run("status").stdout
    run("keys", "disable", "k-3", "--reason", "for now")
    before = provider.requests
    code, found = tested("k-3")
    assert (code, found["keys"][0]["state"], provider.requests) == (1, "not tried", before)
    assert "disabled: for now" in found["keys"][0]["reason"]
    provider.inject(Fault.status(503), times=1)
    code, found = tested("k-4")
    assert (code, found["keys"][0]["state"]) == (1, "unknown")
    assert "says nothing of the key (503" in found["keys"][0]["reason"]


@pytest.mark.slow
def test_projects_are_proven(
    tested: Callable[..., tuple[int, Any]], run: Callable[..., Result], provider: GeminiEmulator
) -> None:
    """By files, which are gone afterwards; where the keys file says otherwise it is said."""
    code, found = tested("--projects", "--model", PRO)
    assert code == 1
    assert found["projects"]["groups"] == [["k-1", "k-2"], ["k-3"], ["k-4"]]
    assert "does not accept" in found["projects"]["failed"]["k-5"]
    result = run("keys", "test", "--projects", *PROJECTS)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-4:] == [
        "a project of its own: k-3, k-4",
        'one project: k-1, k-2; its quota is counted several times: give them one "project" in keys.json',
        "project 'same' of keys.json is 2 projects: give each a name of its own",
        "4 of 4 keys alive",
    ]
    code, found = tested("--projects", "k-1", "--timeout", 0.001)
    assert (code, found["keys"][0]["state"], found["projects"]["groups"]) == (1, "unknown", [])
    assert "no answer within 0.001 s" in found["projects"]["failed"]["k-1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("test", "k-9"), "no key in use has the id 'k-9'"),
        (("test", "k-1", "--model", "m-x"), "not every key (k-1) serves the model 'm-x'"),
        (("test", "--model", "m-x"), "no key serves the model 'm-x'"),
        (("test", "--timeout", "0"), "--timeout"),
        (("limits", "k-9"), "no key has the id 'k-9'"),
        (("limits", "k-1", "--model", "m-x"), "has no model 'm-x'"),
        (("limits", "k-1", "--forget", "--store", "memory://"), "no other process would notice"),
    ],
)
def test_mistakes_are_2(
    run: Callable[..., Result], provider: GeminiEmulator, arguments: tuple[str, ...], words: str
) -> None:
    """Nothing is sent then."""
    result = run("keys", *arguments)
    assert (result.exit_code, provider.requests) == (2, 0)
    assert words in result.stderr


@pytest.mark.slow
def test_limits_are_shown_and_forgotten(
    run: Callable[..., Result], tested: Callable[..., tuple[int, Any]], provider: GeminiEmulator
) -> None:
    """Configured, in force, and how it is known, for each quota; what was learnt can be forgotten."""
    tested("k-1", "k-2")
    shown = {key: json.loads(run("keys", "limits", key, "--json").stdout) for key in ("k-1", "k-2")}
    key = next(key for key, rows in shown.items() if any(row["source"] == "stated" for row in rows))
    [row] = [row for row in shown[key] if row["source"] == "stated"]
    assert (row["model"], row["metric"], row["limit"], row["configured"]) == (LITE, "rpm", 1, None)
    assert row["raised_in_seconds"] > 60
    text = run("keys", "limits", key, "--model", LITE).stdout.splitlines()
    assert text[1].split("  ")[:1] == [LITE]
    assert "stated by the provider" in text[1]
    assert "more is tried in" in text[1]
    assert len(text) == 4
    result = run("keys", "limits", key, "--forget")
    assert (result.exit_code, result.stderr) == (0, "")
    first, rest = result.stdout.split("\n", 1)
    assert first.startswith(f"forgotten: {LITE} rpm 1, stated by the provider ")
    assert "stated" not in rest
    again = run("keys", "limits", key, "--forget").stdout
    assert again.startswith(f"nothing to forget: no limit of {key} that is in force was learnt\n")


@pytest.mark.slow
def test_limits_of_the_configuration(run: Callable[..., Result], home: Path) -> None:
    """A number is configured; without any, the model is unlimited."""
    assert run("keys", "limits", "key-light").stdout.splitlines()[-1] == "unlimited: model-l"
    keys = json.loads((home / "keys.json").read_text())
    keys["keys"][0]["limits"] = {"rpm": 1500}
    (home / "keys.json").write_text(json.dumps(keys))
    assert run("keys", "limits", "key-light").stdout.splitlines()[1].split() == [
        "model-l",
        "rpm",
        "1,500",
        "1,500",
        "configured",
        "0",
    ]


def test_spending_is_called_so_wherever_it_is_shown(run: Callable[..., Result], home: Path) -> None:
    """Nothing says that it was requests of a minute, or that it is counted in whole before it is."""
    url = f"sqlite:///{home / 'state.sqlite3'}"

    async def teach() -> None:
        store = open_store(url)
        spending = ProjectDeployment.spending_of(Deployment(Key("key-light", Secret("-")), "model-l"))
        await store.cool_down(
            Cooldown.learn(spending.model_scope, LearntLimit(Metric.RPM, 10**15, LimitSource.UNKNOWN))
        )
        await store.reserve("one", [spending], Demand(1, 1), 60.0)
        await store.settle("one", Demand(1, 1))
        await store.aclose()

    asyncio.run(teach())
    shown = run("keys", "limits", "key-light", "--store", url).stdout
    assert "all models  spending (requests in 10 min)  unknown" in shown
    assert "  1 since " in shown
    explained = run("explain", "x", "--model", "model-l", "--store", url).stdout
    assert (
        "all models: spending (requests in 10 min) ≥1/? (no known limit; counted since a refusal "
        in explained
    )


def test_limits_that_all_models_of_a_project_share(run: Callable[..., Result], home: Path) -> None:
    """They have a line of their own, are explained and listed, and are forgotten with those of the key."""
    url = f"sqlite:///{home / 'state.sqlite3'}"

    async def teach() -> None:
        store = open_store(url)
        project = ProjectDeployment.of(Deployment(Key("key-light", Secret("-")), "model-l"))
        await store.cool_down(Cooldown.learn(project.model_scope, LearntLimit(Metric.RPM, 10)))
        await store.reserve("one", [project], Demand(1, 1), 60.0)
        await store.settle("one", Demand(1, 1))
        await store.aclose()

    asyncio.run(teach())
    shown = run("keys", "limits", "key-light", "--store", url).stdout
    assert "all models  rpm    10                 stated by the provider" in shown
    assert "  1 since " in shown
    [record] = json.loads(run("keys", "limits", "key-light", "--store", url, "--json").stdout)
    assert (record["model"], record["limit"], record["used"]) == ("*", 10, 1)
    explained = run("explain", "x", "--model", "model-l", "--store", url).stdout
    assert "all models: rpm ≥1/10 (stated by the provider " in explained
    listed = run("status", "--store", url).stdout
    assert "project key-light, all models: rpm 10, stated by the provider" in listed
    forgotten = run("keys", "limits", "key-light", "--store", url, "--forget").stdout
    first, rest = forgotten.split("\n", 1)
    assert first.startswith("forgotten: all models rpm 10, stated by the provider ")
    assert "all models" not in rest
    again = run("keys", "limits", "key-light", "--store", url, "--forget").stdout
    assert again.startswith("nothing to forget: no limit of key-light that is in force was learnt\n")


def test_a_limit_that_is_not_known_was_refused() -> None:
    """What nobody has set a limit for is counted since a refusal named it."""
    record = LimitRecord(
        key_id="k",
        project="p",
        model="m",
        metric="tpm",
        limit=None,
        configured=None,
        configured_as="unlimited",
        source="unknown",
        used=9,
        full_until=None,
        counted_since=1.0,
        learnt_ago_seconds=120.0,
        learnt_at=1.0,
        raised_in_seconds=None,
        raised_at=None,
        reset_in_seconds=1.0,
        reset_at=2.0,
    )
    assert how_known(record) == "no known limit; counted since a refusal 2 min ago"
    record["learnt_ago_seconds"] = None
    assert how_known(record) == "not refused so far"
