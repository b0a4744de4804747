"""``llm-router check --online``: which keys of a keys file are alive, and whether they serve its models."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypedDict

from llm_router.cli.output import count
from llm_router.cli.probing import are_served, lists_of_models
from llm_router.cli.reasons import reason_of
from llm_router.config import Settings
from llm_router.domain.deployment import Deployment, Key
from llm_router.domain.queries import ModelInfo
from llm_router.errors import LLMRouterError

__all__ = ["OnlineRecord", "ask_online", "online_lines"]


class OnlineRecord(TypedDict):
    """What the provider says of one key, in the form of JSON."""

    key_id: str
    alive: bool
    reason: str | None
    """Why it is not, or that is not known."""
    models: list[str]
    """The models that it is served."""
    missing: dict[str, str | None]
    """The models of the keys file that it is not served, with the name that may be meant."""


async def ask_online(settings: Settings, timeout: float) -> list[OnlineRecord]:
    """Ask the provider of each key in use which models it serves; nothing is generated, no quota is used."""
    by_key: dict[Key, list[Deployment]] = {}
    for deployment in settings.deployments:
        by_key.setdefault(deployment.key, []).append(deployment)
    answers = await lists_of_models(list(by_key), settings.base_url, timeout)
    found = dict(zip(by_key, answers, strict=True))
    unlisted = {
        key: [each.model for each in by_key[key] if each.model not in _names(answer)]
        for key, answer in found.items()
        if not isinstance(answer, LLMRouterError)
    }
    served = await are_served(unlisted, settings.base_url, timeout)
    return [
        _record(key, answer, [model for model in unlisted.get(key, ()) if not served[key, model]])
        for key, answer in found.items()
    ]


def _names(answer: list[ModelInfo] | LLMRouterError) -> list[str]:
    return [] if isinstance(answer, LLMRouterError) else [info.name for info in answer]


def _record(key: Key, answer: list[ModelInfo] | LLMRouterError, missing: Sequence[str]) -> OnlineRecord:
    names = _names(answer)
    return OnlineRecord(
        key_id=key.key_id,
        alive=not isinstance(answer, LLMRouterError),
        reason=reason_of(answer) if isinstance(answer, LLMRouterError) else None,
        models=names,
        missing={model: next(iter(get_close_matches(model, names, n=1)), None) for model in missing},
    )


def online_lines(records: Sequence[OnlineRecord]) -> list[str]:
    """Say what the provider says of each key."""
    lines = []
    for each in records:
        if not each["alive"]:
            lines.append(f"{each['key_id']}: not alive, or not known: {each['reason']}")
            continue
        lines.append(f"{each['key_id']}: alive, is served {count(len(each['models']), 'model')}")
        for model, meant in each["missing"].items():
            remedy = f"did you mean {meant!r}?" if meant else "take it out, or correct its name"
            lines.append(f"{each['key_id']}: is not served {model!r}: {remedy}")
    return lines
