"""Events as plain values, and the names that sinks give to errors."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import attrs
import pytest

from llm_router import (
    Deployment,
    Key,
    Metric,
    ProviderError,
    QuotaExhaustedError,
    Request,
    Secret,
    Usage,
    observe,
)
from llm_router.observe import (
    AttemptEnded,
    Event,
    LimitLearnt,
    Reloaded,
    RouterObserver,
    SendBegan,
)
from llm_router.observe.base import error_type

DEPLOYMENT = Deployment(Key("k", Secret("AIza-secret"), project="p"), "model-a", "light")


def test_the_fields_of_an_event_are_plain() -> None:
    """A deployment, the usage, the metadata and an error become values that a log can take."""
    event = AttemptEnded(
        at=2.5,
        request_id="r",
        workload=None,
        metadata={"tenant": "acme"},
        deployment=DEPLOYMENT,
        number=1,
        seconds=0.5,
        error=ProviderError("no", kind="quota", code=429),
        usage=Usage(input_tokens=3),
        response_model=None,
        finish_reason=None,
    )
    assert event.fields() == {
        "event": "attempt_ended",
        "at": 2.5,
        "request_id": "r",
        "metadata.tenant": "acme",
        "provider": "gemini",
        "key_id": "k",
        "project": "p",
        "model": "model-a",
        "number": 1,
        "seconds": 0.5,
        "error_type": "429",
        "input_tokens": 3,
    }


def test_enumerations_and_tuples_are_plain_too() -> None:
    """A metric is its word, and a list of ids is one text."""
    learnt = LimitLearnt(at=0.0, deployment=DEPLOYMENT, metric=Metric.RPM, limit=5).fields()
    assert (type(learnt["metric"]), learnt["metric"], learnt["source"]) == (str, "rpm", "stated")
    assert Reloaded(at=0.0, added=("a/m", "b/m")).fields()["added"] == "a/m, b/m"


def test_the_request_is_not_among_the_fields() -> None:
    """A prompt is in an event only for those who ask for it by name."""
    event = SendBegan(
        at=0.0,
        request_id="r",
        workload="light",
        metadata={},
        requested_model="m",
        streamed=False,
        request=Request(contents="the prompt"),
    )
    assert set(event.fields()) == {"event", "at", "request_id", "workload", "requested_model", "streamed"}
    assert "the prompt" not in repr(event)
    assert event.tenant is None


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (None, None),
        (ProviderError("x", kind="quota", code=429), "429"),
        (ProviderError("x", kind="network"), "network"),
        (QuotaExhaustedError("x"), "QuotaExhaustedError"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
)
def test_the_type_of_an_error(error: BaseException | None, word: str | None) -> None:
    """It is the HTTP status, the kind of failure, or the name of the class: never the text."""
    assert error_type(error) == word


def test_every_event_has_a_name_of_its_own() -> None:
    """What is not abstract is named after its class, and exported."""
    kinds = [getattr(observe, name) for name in observe.__all__]
    events = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Event)]
    abstract = {"Event", "RequestEvent", "ScopeEvent"}
    for kind in events:
        words = "".join(f"_{each.lower()}" if each.isupper() else each for each in kind.__name__).lstrip("_")
        assert kind.__name__ in abstract or kind.name == words
        assert attrs.has(kind)


def test_a_function_is_not_an_observer() -> None:
    """The protocol can be checked: it asks for the one method."""
    assert not isinstance(print, RouterObserver)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("OpenTelemetryObserver", "opentelemetry", "otel"),
        ("PrometheusObserver", "prometheus_client", "prometheus"),
    ],
)
def test_a_missing_extra_is_named(name: str, module: str, extra: str) -> None:
    """Where a library is not installed, importing the sink says what to install."""
    code = f"import sys; sys.modules[{module!r}] = None; from llm_router.observe import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert f"{name} needs '{module}" in last
    assert f"pip install 'llm-quota-router[{extra}]'" in last


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Only names that exist are looked up."""
    with pytest.raises(AttributeError, match="no attribute 'StatsdObserver'"):
        _ = observe.StatsdObserver  # type: ignore[attr-defined]
