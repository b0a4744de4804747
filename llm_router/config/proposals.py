"""Propose what a new key needs: a name, models, and the workload of each, by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from llm_router.domain.methods import GENERATE, serves_any, usual_methods
from llm_router.domain.queries import ModelInfo

__all__ = ["models_shown", "next_key_id", "proposed_models", "workload_for"]

_LIGHT, _HEAVY = ("lite", "nano", "8b"), ("pro", "ultra")
_UNSETTLED = ("preview", "exp", "experimental", "thinking")
_OTHER_TRADES = ("computer", "use", "robotics", "er", "customtools", "research", "antigravity")


def next_key_id(known: Collection[str]) -> str:
    """Return a name for one more key: the last one that ends with a number, counted up."""
    last = next((found for name in reversed(list(known)) if (found := re.search(r"(\d+)$", name))), None)
    if last is None:
        return _free("gemini-key-{:02}", 1, known)
    stem = last.string[: last.start()].replace("{", "{{").replace("}", "}}")
    width = len(last[1])
    return _free(f"{stem}{{:0{width}}}", int(last[1]) + 1, known)


def _free(form: str, number: int, known: Collection[str]) -> str:
    while form.format(number) in known:
        number += 1
    return form.format(number)


def workload_for(model: str, workloads: Sequence[str]) -> str:
    """Return the workload that the name of a model speaks for: lite is light, pro is heavy, else between."""
    words = _words(model)
    if any(word in words for word in _LIGHT):
        return workloads[0]
    if any(word in words for word in _HEAVY):
        return workloads[-1]
    return workloads[len(workloads) // 2]


def proposed_models(served: Iterable[ModelInfo], workloads: Sequence[str]) -> dict[str, str]:
    """Return a model for each workload that some model speaks for, as model → workload, lightest first.

    Of several the settled ones come first, then those whose name has a version, the newest first. Models that
    do not answer prompts with text are left out.
    """
    ranked = sorted((info.name for info in served if _answers(info)), key=_rank)
    best: dict[str, str] = {}
    for model in ranked:
        best.setdefault(workload_for(model, workloads), model)
    return {best[workload]: workload for workload in workloads if workload in best}


def _answers(info: ModelInfo) -> bool:
    return (
        info.name.startswith("gemini")
        and serves_any(usual_methods(info.name))
        and (not info.methods or GENERATE in info.methods)
        and not _words(info.name) & set(_OTHER_TRADES)
    )


def _rank(model: str) -> tuple[object, ...]:
    version = re.search(r"\d+(?:\.\d+)*", model)
    numbers = [int(part) for part in version[0].split(".")] if version else []
    newest = tuple(-number for number in [*numbers, 0, 0][:3])
    return bool(_words(model) & set(_UNSETTLED)), version is None, newest, len(model), model


def _words(model: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", model.lower()))


def models_shown(models: Mapping[str, str]) -> str:
    """Return models and workloads as they are asked for: ``model=workload``, with commas between."""
    return ", ".join(f"{model}={workload}" for model, workload in models.items())
