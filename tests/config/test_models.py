from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_router.domain.quota import GUARD, MAX_LIMIT, Refill

if TYPE_CHECKING:
    from tests.config.conftest import Project


TABLE = {
    "gemini-2.0-flash-exp": ("light", {"rpm": 15, "tpm": 1_000_000, "rpd": 1_500}),
    "gemini-1.5-pro": ("medium", {"rpm": 2, "tpm": 32_000, "rpd": 50}),
    "gemini-exp-1206": ("heavy", {"rpm": 2, "tpm": 32_000, "rpd": 50}),
}


@pytest.mark.parametrize("model", TABLE)
def test_built_in(project: Project, model: str) -> None:
    """A model of the table has the limits and the workload of the table."""
    (deployment,) = project.write(project.entry(model_name=model)).load().deployments
    assert (deployment.workload, project.quotas()) == TABLE[model]


@pytest.mark.parametrize(
    ("own", "top", "limits"),
    [
        ({}, {}, {"rpm": 2, "tpm": 32_000, "rpd": 50}),
        ({}, {"rpm": 7}, {"rpm": 7, "tpm": 32_000, "rpd": 50}),
        ({}, {"limits": {"rpm": 7, "tpd": 8}}, {"rpm": 7, "tpm": 32_000, "rpd": 50, "tpd": 8}),
        ({"rpm": 5}, {"rpm": 7, "rpd": 9}, {"rpm": 5, "tpm": 32_000, "rpd": 9}),
        ({"limits": {"rpm": 5}, "rpd": 0}, {"rpm": 7}, {"rpm": 5, "tpm": 32_000, "rpd": 0}),
        ({"limits": {"tpm": None}}, {"tpm": 7}, {"rpm": 2, "rpd": 50}),
        ({"tpm": 3}, {"tpm": None, "rpd": None}, {"rpm": 2, "tpm": 3}),
        ({"limits": {"rpm": None, "tpm": None, "rpd": None}}, {}, {}),
    ],
)
def test_precedence(
    project: Project, own: dict[str, Any], top: dict[str, Any], limits: dict[str, int]
) -> None:
    """Each limit comes from the entry, the file's models or the table, in this order; null removes it."""
    project.write(project.entry(**own), models={"gemini-1.5-pro": top})
    assert project.quotas() == limits
    assert project.load().warnings == ()


def test_refills(project: Project) -> None:
    """Per-minute quotas refill as the model states, daily ones at midnight; only requests have a burst."""
    limits = {"rpm": 60, "tpm": 1000, "rpd": 50, "tpd": 2000}
    project.write(
        project.entry(model_name="m"), models={"m": {"limits": limits, "refill": "steady", "burst": 4}}
    )
    quotas = {quota.metric.value: quota for quota in project.load(guard=0.5).deployments[0].quotas}
    assert {name: quota.refill for name, quota in quotas.items()} == {
        "rpm": Refill.STEADY,
        "tpm": Refill.STEADY,
        "rpd": Refill.DAILY,
        "tpd": Refill.DAILY,
    }
    assert {name: quota.burst for name, quota in quotas.items()} == {
        "rpm": 4,
        "tpm": None,
        "rpd": None,
        "tpd": None,
    }
    assert {quota.guard for quota in quotas.values()} == {0.5}


def test_rolling_by_default(project: Project) -> None:
    """By default, quotas are rolling and have the default guard."""
    quota = project.write().load().deployments[0].quotas[0]
    assert (quota.refill, quota.burst, quota.guard) == (Refill.ROLLING, None, GUARD)


@pytest.mark.parametrize("rpm", [0, 1, 3])
def test_burst_follows_a_lower_limit(project: Project, rpm: int) -> None:
    """A limit below the burst of the model makes the bucket smaller, and is not an error."""
    project.write(
        project.entry(model_name="m", rpm=rpm), models={"m": {"rpm": 60, "refill": "steady", "burst": 4}}
    )
    assert project.load().deployments[0].quotas[0].capacity == rpm


COUNTED = dict.fromkeys(("rpm", "tpm", "rpd"), (MAX_LIMIT, True))
LEARNT = {"rpm": 4, "tpm": MAX_LIMIT, "rpd": MAX_LIMIT}


def terms(project: Project) -> list[dict[str, tuple[int, bool]]]:
    """Return limit and adaptivity of each quota of each deployment."""
    return [
        {quota.metric.value: (quota.limit, quota.adaptive) for quota in deployment.quotas}
        for deployment in project.load().deployments
    ]


def test_the_limits_of_an_unknown_model_are_learnt(project: Project) -> None:
    """A few requests a minute go first; tokens and days are only counted until something is refused."""
    project.write(*(project.entry(f"k{n}", model_name="new") for n in range(2)))
    assert terms(project) == [{metric: (limit, True) for metric, limit in LEARNT.items()}] * 2
    assert project.load().warnings == ()


@pytest.mark.parametrize(
    ("own", "models", "expected"),
    [
        ({"rpm": 3}, {}, {"rpm": (3, False)}),
        ({"limits": {"rpm": None}}, {}, {}),
        ({}, {"new": {"rpd": 3}}, {"rpd": (3, False)}),
        ({}, {"new": {"rpd": None}}, {}),
        ({"limits": "learn"}, {}, {metric: (limit, True) for metric, limit in LEARNT.items()}),
        ({"limits": "learn"}, {"new": {"rpm": 15}}, {**COUNTED, "rpm": (15, True)}),
        ({"rpm": 3}, {"new": {"limits": "learn"}}, {**COUNTED, "rpm": (3, False)}),
        ({"limits": {"rpm": 15, "rpd": "learn"}}, {}, {"rpm": (15, False), "rpd": (MAX_LIMIT, True)}),
        ({"rpm": "learn", "tpd": "learn"}, {}, {"rpm": (4, True), "tpd": (MAX_LIMIT, True)}),
        ({"limits": "learn", "tpm": 900}, {}, {**COUNTED, "rpm": (4, True), "tpm": (900, False)}),
    ],
)
def test_a_number_is_a_cap_and_learn_is_a_start(
    project: Project, own: dict[str, Any], models: dict[str, Any], expected: dict[str, tuple[int, bool]]
) -> None:
    """What is not mentioned of a model is unlimited if anything is; "learn" starts from what it overrides."""
    project.write(project.entry(model_name="new", **own), models=models)
    assert terms(project) == [expected]
    assert project.load().warnings == ()


def test_learning_starts_from_the_built_in_table(project: Project) -> None:
    """An entry may leave the limits of a model that is built in to be learnt."""
    project.write(project.entry(model_name="gemini-1.5-pro", limits="learn"))
    assert terms(project) == [{"rpm": (2, True), "tpm": (32_000, True), "rpd": (50, True)}]


def test_models_without_a_key(project: Project) -> None:
    """Limits of a model that no key deploys cause a warning, since the name is probably misspelt."""
    (warning,) = project.write(models={"gemini-1.5-por": {"rpm": 1}}).load().warnings
    assert warning == f"{project.path}: models.gemini-1.5-por: no key deploys this model: check its name"


@pytest.mark.parametrize(
    ("workloads", "tag", "of_model", "expected"),
    [
        (None, "heavy", "medium", "heavy"),
        (None, None, "medium", "medium"),
        (None, None, None, "light"),
        (["small", "medium"], None, None, "medium"),
        (["a", "b", "c"], None, None, "b"),
        (["a"], None, None, "a"),
    ],
)
def test_default_workload(
    project: Project, workloads: list[str] | None, tag: str | None, of_model: str | None, expected: str
) -> None:
    """The workload comes from the entry, the model or the table; else it is medium, or the middle one."""
    entry = project.entry(model_name="gemini-2.0-flash-exp", tags={"workload": tag} if tag else {})
    models = {"gemini-2.0-flash-exp": {"workload": of_model} if of_model else {}}
    project.write(entry, models=models, **({"workloads": workloads} if workloads else {}))
    settings = project.load()
    assert settings.deployments[0].workload == expected
    assert settings.workloads == tuple(workloads or ("light", "medium", "heavy"))
