from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_router.config import load_settings


def test_duplicate_deployment(project):
    """One model twice on one key is refused, whether both are used or not."""
    message = project.write(project.entry(), project.entry("k2"), project.entry(active=False)).refusal()
    assert message == (
        "keys[2] (k1): model 'gemini-1.5-pro' is already deployed on this key by keys[0] (k1): "
        "remove one of the two"
    )


def test_duplicate_in_models(project):
    """One model twice in a list is refused."""
    message = project.write(project.entry(models=["m", "n", "m"])).refusal()
    assert message == (
        "keys[0] (k1): models[2]: model 'm' is already deployed on this key by keys[0] (k1): models[0]: "
        "remove one of the two"
    )


def test_one_key_in_several_entries(project):
    """A key may have one entry per model."""
    first, second = project.write(project.entry(), project.entry(model_name="m", rpm=1)).load().deployments
    assert first.key is second.key


@pytest.mark.parametrize("field", ["project", "provider"])
def test_key_with_two_minds(project, field):
    """One key has one project and one provider."""
    project.write(project.entry(**{field: "one"}), project.entry(model_name="m", rpm=1, **{field: "two"}))
    assert project.refusal(providers=("one", "two")) == (
        f"keys[1] (k1): {field} 'two' differs from the 'one' of keys[0] (k1): one key has one {field}"
    )


def test_colliding_variables(project):
    """Two keys whose secrets would have one name are refused."""
    project.env["API_KEY_a_b"] = "s"
    message = project.write(
        {"key_id": "a-b", "model_name": "gemini-1.5-pro"}, {"key_id": "a.b", "model_name": "gemini-1.5-pro"}
    ).refusal()
    assert (
        "keys[1] (a.b): key_id: its secret would be API_KEY_a_b, as that of keys[0] (a-b): rename" in message
    )


def test_two_limits_for_one_quota(project):
    """Keys of one project share their quotas, so they cannot state different limits."""
    message = project.write(project.entry("a", project="p"), project.entry("b", project="p", rpm=3)).refusal()
    assert message == (
        "keys[1] (b): limits of model 'gemini-1.5-pro' in project 'p' are rpm 3, tpm 32000, rpd 50, but "
        "rpm 2, tpm 32000, rpd 50 in keys[0] (a): one project has one quota: state the same"
    )


def test_one_quota_for_two_keys(project):
    """Keys of one project that state the same limits, each in its way, share a scope."""
    project.write(project.entry("a", project="p", rpm=2), project.entry("b", project="p"), project.entry("c"))
    a, b, c = (deployment.model_scope for deployment in project.load().deployments)
    assert a == b != c


def test_no_active_key(project):
    """A file with nothing to send through is refused."""
    message = project.write(project.entry(active=False)).refusal()
    assert message == 'keys: no key is active: set "active": true on at least one'


def test_inactive_key(project):
    """An inactive key is kept for statuses, and needs no secret."""
    project.write(project.entry("a"), {"key_id": "b", "model_name": "gemini-1.5-pro", "active": False})
    settings = project.load()
    assert [deployment.id for deployment in settings.deployments] == ["a/gemini-1.5-pro"]
    assert [deployment.id for deployment in settings.inactive] == ["b/gemini-1.5-pro"]
    assert settings.inactive[0].key.secret.reveal() == ""


def test_single_key(project):
    """With the switch off only the first active key is used, with all its models, and needs a secret."""
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


def test_other_provider(project):
    """A provider that the caller knows is accepted."""
    project.write(project.entry(provider="mine"))
    assert "provider: 'mine' is not known" in project.refusal()
    assert project.load(providers=("gemini", "mine")).deployments[0].key.provider == "mine"


def test_shared_secret(project):
    """One secret under two names is one key to the provider: a warning, unless they share a project."""
    project.write(*(project.entry(name, project=name[0]) for name in ("a1", "a2", "b1")))
    project.env.update(dict.fromkeys(("API_KEY_a1", "API_KEY_a2", "API_KEY_b1"), "one-and-the-same-secret"))
    (warning,) = project.load().warnings
    assert warning.startswith(f"{project.path}: keys[2] (b1): API_KEY_b1 holds the same secret as API_KEY_a1")


IDS = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=12)
    .map(str.strip)
    .filter(bool),
    min_size=1,
    max_size=5,
    unique_by=lambda text: re.sub(r"[^A-Za-z0-9]", "_", text),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=IDS)
def test_odd_ids(project, ids):
    """Whatever the characters of an id, its key gets its own secret and its own scope."""
    project.write(*({"key_id": name, "model_name": "gemini-1.5-pro"} for name in ids))
    env = {
        "API_KEY_" + re.sub(r"[^A-Za-z0-9]", "_", name): f"secret-{number}" for number, name in enumerate(ids)
    }
    deployments = load_settings(project.path, env=env).deployments
    assert [deployment.key.key_id for deployment in deployments] == ids
    secrets = [deployment.key.secret.reveal() for deployment in deployments]
    assert secrets == [f"secret-{number}" for number in range(len(ids))]
    assert len({deployment.model_scope for deployment in deployments}) == len(ids)
