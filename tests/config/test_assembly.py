from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_router.config import load_settings

if TYPE_CHECKING:
    from tests.config.conftest import Project


def test_duplicate_deployment(project: Project) -> None:
    """A model that is deployed twice on one key is rejected, even if one of the entries is inactive."""
    message = project.write(project.entry(), project.entry("k2"), project.entry(active=False)).refusal()
    assert message == (
        "keys[2] (k1): model 'gemini-1.5-pro' is already deployed on this key by keys[0] (k1): "
        "remove one of the two"
    )


def test_duplicate_in_models(project: Project) -> None:
    """A model that appears twice in one list is rejected."""
    message = project.write(project.entry(models=["m", "n", "m"])).refusal()
    assert message == (
        "keys[0] (k1): models[2]: model 'm' is already deployed on this key by keys[0] (k1): models[0]: "
        "remove one of the two"
    )


def test_one_key_in_several_entries(project: Project) -> None:
    """A key may have one entry per model."""
    first, second = project.write(project.entry(), project.entry(model_name="m", rpm=1)).load().deployments
    assert first.key is second.key


@pytest.mark.parametrize("field", ["project", "provider"])
def test_conflicting_entries_for_one_key(project: Project, field: str) -> None:
    """Entries of one key that state different projects or providers are rejected."""
    project.write(project.entry(**{field: "one"}), project.entry(model_name="m", rpm=1, **{field: "two"}))
    assert project.refusal(providers=("one", "two")) == (
        f"keys[1] (k1): {field} 'two' differs from 'one' in keys[0] (k1): a key has one {field}, so "
        "use the same in both entries"
    )


def test_colliding_variables(project: Project) -> None:
    """Two keys whose secrets would be in the same variable are rejected."""
    project.env["API_KEY_a_b"] = "s"
    message = project.write(
        {"key_id": "a-b", "model_name": "gemini-1.5-pro"}, {"key_id": "a.b", "model_name": "gemini-1.5-pro"}
    ).refusal()
    assert (
        "keys[1] (a.b): key_id: the variable of its secret would be API_KEY_a_b, the same as that of "
        "keys[0] (a-b): rename one of the two keys"
    ) in message


def test_two_limits_for_one_quota(project: Project) -> None:
    """Keys of one project share their quotas, so different limits are rejected."""
    message = project.write(project.entry("a", project="p"), project.entry("b", project="p", rpm=3)).refusal()
    assert message == (
        "keys[1] (b): limits of model 'gemini-1.5-pro' in project 'p' are rpm 3, tpm 32000, rpd 50, but "
        "rpm 2, tpm 32000, rpd 50 in keys[0] (a): keys of one project share its quotas, so "
        "state the same limits"
    )


def test_one_quota_for_two_keys(project: Project) -> None:
    """Keys of one project share a scope if they state the same limits in different ways."""
    project.write(project.entry("a", project="p", rpm=2), project.entry("b", project="p"), project.entry("c"))
    a, b, c = (deployment.model_scope for deployment in project.load().deployments)
    assert a == b != c


def test_no_active_key(project: Project) -> None:
    """A file without an active key is rejected."""
    message = project.write(project.entry(active=False)).refusal()
    assert message == 'keys: no key is active: set "active": true on at least one'


def test_inactive_key(project: Project) -> None:
    """An inactive key is kept for statuses and needs no secret."""
    project.write(project.entry("a"), {"key_id": "b", "model_name": "gemini-1.5-pro", "active": False})
    settings = project.load()
    assert [deployment.id for deployment in settings.deployments] == ["a/gemini-1.5-pro"]
    assert [deployment.id for deployment in settings.inactive] == ["b/gemini-1.5-pro"]
    assert settings.inactive[0].key.secret.reveal() == ""


def test_single_key(project: Project) -> None:
    """With the switch off, only the first active key, with all its models, is used and needs a secret."""
    project.write(
        project.entry("a", active=False),
        project.entry("b"),
        {"key_id": "c", "model_name": "gemini-1.5-pro"},
        project.entry("b", model_name="m", rpm=1),
    )
    project.env["LLM_MULTI_KEY_ROUTER_ENABLED"] = "false"
    settings = project.load()
    assert [deployment.id for deployment in settings.deployments] == ["b/gemini-1.5-pro", "b/m"]
    assert [deployment.key.key_id for deployment in settings.inactive] == ["a", "c"]


def test_other_provider(project: Project) -> None:
    """A provider that the caller names is accepted."""
    project.write(project.entry(provider="mine"))
    assert "provider: 'mine' is not known" in project.refusal()
    assert project.load(providers=("gemini", "mine")).deployments[0].key.provider == "mine"


def test_shared_secret(project: Project) -> None:
    """Two keys with the same secret cause a warning, unless they share a project."""
    project.write(*(project.entry(name, project=name[0]) for name in ("a1", "a2", "b1")))
    project.env.update(dict.fromkeys(("API_KEY_a1", "API_KEY_a2", "API_KEY_b1"), "one-and-the-same-secret"))
    (warning,) = project.load().warnings
    assert warning.startswith(
        f"{project.path}: keys[2] (b1): API_KEY_b1 contains the same secret as API_KEY_a1"
    )


IDS = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12)
    .map(str.strip)
    .filter(bool),
    min_size=1,
    max_size=5,
    unique_by=lambda text: re.sub(r"[^A-Za-z0-9]", "_", text),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=IDS)
def test_odd_ids(project: Project, ids: list[str]) -> None:
    """Each key gets its own secret and its own scope, whatever characters are in its id."""
    project.write(*({"key_id": name, "model_name": "gemini-1.5-pro"} for name in ids))
    env = {
        "API_KEY_" + re.sub(r"[^A-Za-z0-9]", "_", name): f"secret-{number}" for number, name in enumerate(ids)
    }
    deployments = load_settings(project.path, env=env).deployments
    assert [deployment.key.key_id for deployment in deployments] == ids
    secrets = [deployment.key.secret.reveal() for deployment in deployments]
    assert secrets == [f"secret-{number}" for number in range(len(ids))]
    assert len({deployment.model_scope for deployment in deployments}) == len(ids)


def test_one_name_for_a_model(project: Project) -> None:
    """``models/m`` beside ``m`` on one key is the same deployment twice, wherever it is written."""
    message = project.write(project.entry(model_name="m"), project.entry(model_name="models/m")).refusal()
    assert message.startswith("keys[1] (k1): model 'm' is already deployed on this key by keys[0] (k1)")
    assert (
        "models[1]: model 'm' is already deployed"
        in project.write(project.entry(models=["m", {"model_name": "models/m"}])).refusal()
    )


def test_a_name_of_vertex_ai(project: Project) -> None:
    """The Gemini API knows no such name; beside the plain one it would count its quota twice."""
    for name in ("publishers/google/models/m", "projects/p/locations/l/publishers/google/models/m"):
        message = project.write(project.entry(model_name=name), project.entry(model_name="m")).refusal()
        assert message == (
            f"keys[0] (k1): model_name: {name!r} is a name of Vertex AI, which the Gemini API refuses: "
            "write 'm'"
        )
    project.write(project.entry(model_name="tunedModels/m")).load()


def test_one_spelling_of_a_model_in_a_project(project: Project) -> None:
    """Names that differ by capitals alone are one model, on one key or on several of the project."""
    words = "model 'm' differs from 'M' in keys[0] (k1) by capitals alone"
    for second in (project.entry(model_name="m"), project.entry("k2", model_name="m", project="k1")):
        assert words in project.write(project.entry(model_name="M"), second).refusal()
    apart = (project.entry(model_name="M"), project.entry("k2", model_name="m"))
    project.write(*apart).load()


def test_one_quota_for_a_model(project: Project) -> None:
    """The limits of a project agree for ``m`` and ``models/m``, and either finds the defaults of a model."""
    one = project.entry("a", project="p", model_name="m")
    other = project.entry("b", project="p", models=["models/m"])
    project.write(one | {"rpm": 1}, other | {"rpm": 2})
    assert "limits of model 'm' in project 'p' are rpm 2, but rpm 1 in keys[0] (a)" in project.refusal()
    project.write(one, other, models={"models/m": {"rpm": 7}})
    assert project.quotas() == project.quotas(1) == {"rpm": 7}
    assert {deployment.model for deployment in project.load().deployments} == {"m"}
    project.write(project.entry(model_name="models/gemini-1.5-pro"))
    assert project.quotas() == {"rpm": 2, "tpm": 32000, "rpd": 50}


def test_the_defaults_of_a_model_under_two_names(project: Project) -> None:
    """Defaults for ``m`` and for ``models/m`` contradict each other, and one has to go."""
    project.write(project.entry(model_name="m"), models={"m": {"rpm": 1}, "models/m": {"rpm": 2}})
    assert project.refusal() == "models.models/m: is the same model as 'm': keep one, without models/"


@pytest.mark.parametrize("name", ["models/", "models/your-model-here"])
def test_a_placeholder_after_models(project: Project, name: str) -> None:
    """What comes after models/ must be a name."""
    assert "is a placeholder" in project.write(project.entry(model_name=name)).refusal()
    assert "is a placeholder" in project.write(project.entry(), models={name: {"rpm": 1}}).refusal()


def test_a_weight_of_hundreds_of_digits(project: Project) -> None:
    """A number beyond every float is refused and does not end the check."""
    project.write(project.entry(tags={"weight": 10**400}))
    assert project.refusal().startswith("keys[0] (k1): tags.weight: must be a number above 0")
