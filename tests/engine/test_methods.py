"""Who can do what: a request reaches only models that can serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_router import ConfigError, Deployment, InvalidRequestError, Key, Router, Secret
from llm_router.domain.methods import EMBED, GENERATE, usual_methods
from llm_router.engine.fallback import FallbackOrders
from llm_router.engine.pool import Pool
from llm_router.engine.upstream import Upstream
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from collections.abc import Iterable


def _deployment(model: str, **fields: object) -> Deployment:
    return Deployment(Key(f"key-{model}", Secret("x")), model, **fields)  # type: ignore[arg-type]


def _models(deployments: Iterable[Deployment], model: str | None, method: str) -> list[str]:
    pool = Pool(deployments, {"gemini": Upstream("gemini", FakeProvider())})
    order = FallbackOrders(pool, ("light", "medium", "heavy"))[None, model, "any", frozenset(), method]
    return sorted(group.model for group in order.groups)


@pytest.mark.parametrize(
    ("model", "method", "does"),
    [
        ("gemini-3.8-flash", GENERATE, True),
        ("gemini-3.8-flash", EMBED, False),
        ("gemini-embedding-001", GENERATE, False),
        ("text-embedding-004", EMBED, True),
        ("gemini-2.5-flash-preview-tts", "speech", True),
        ("gemini-2.5-flash-image", "images", True),
        ("imagen-4.0-generate-001", GENERATE, False),
        ("veo-3.0-generate-001", GENERATE, False),
        ("imagine-this", GENERATE, True),
    ],
)
def test_a_name_says_what_a_model_can_do(model: str, method: str, does: bool) -> None:
    """Every model generates but those whose name says otherwise."""
    assert (method in usual_methods(model)) is does


def test_a_fallback_keeps_to_models_that_can_serve_the_request() -> None:
    """Neither an embedding nor a speech model gets a prompt that does not name it."""
    pool = [_deployment(name) for name in ("flash", "gemini-embedding-001", "flash-tts", "flash-image")]
    assert _models(pool, None, GENERATE) == ["flash"]
    assert _models(pool, None, EMBED) == ["gemini-embedding-001"]
    assert _models(pool, "flash-tts", GENERATE) == ["flash", "flash-tts"]


def test_what_is_stated_wins_over_the_name() -> None:
    """A model with stated methods does these and no others."""
    pool = [_deployment("flash"), _deployment("my-embedder", methods=(EMBED,))]
    assert _models(pool, None, EMBED) == ["my-embedder"]


def test_nothing_that_can_serve_a_request_is_told_at_once() -> None:
    """The error names the method, the model and the remedy."""
    with pytest.raises(InvalidRequestError, match=r"model 'flash' cannot do embedContent.*keys\.json"):
        _models([_deployment("flash"), _deployment("some-embedding")], "flash", EMBED) or None
    with pytest.raises(InvalidRequestError, match="no deployment has a model for embedContent"):
        _models([_deployment("flash")], None, EMBED)


def test_unknown_methods_are_refused() -> None:
    """A router names the deployment and what it may state."""
    with pytest.raises(ConfigError, match=r"'key-m/m' has methods \['sing'\]: use some of countTokens"):
        Router([_deployment("m", methods=("sing",))], provider=FakeProvider())
