"""``llm-router keys add``: one more key in keys.json and ``.env``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import attrs
import typer

from llm_router.cli.asking import ask, ask_secret, can_ask, is_secret
from llm_router.cli.options import KEYS, Keys
from llm_router.cli.output import complain, printable, say
from llm_router.config import Environ
from llm_router.config.adding import NewKey, limits_in, twin_of, write_keys
from llm_router.config.environment import Environment, env_path, read_environment, secret_fault, secret_name
from llm_router.config.findings import Report
from llm_router.config.keyfile import Entry, KeyFile, read_keyfile
from llm_router.config.proposals import models_shown, next_key_id, workload_for
from llm_router.config.settings import examine
from llm_router.domain.deployment import plain_model
from llm_router.domain.methods import GENERATE, usual_methods
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError

__all__ = ["add", "checked_secret", "models_from"]

_WORKLOADS = ("light", "medium", "heavy")


@attrs.frozen
class _Present:
    """What there is already."""

    entries: tuple[Entry, ...]
    workloads: Sequence[str]
    environment: Environment

    @property
    def key_ids(self) -> list[str]:
        """The names of the keys, in their order."""
        return list(dict.fromkeys(entry.key_id for entry in self.entries))


def add(
    key_id: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="The key_id of the new key.", show_default=False)
    ] = None,
    *,
    project: Annotated[
        str | None,
        typer.Option("--project", help="The project that the key belongs to; its keys share their quotas."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="MODEL[=WORKLOAD]", help="A model that the key serves; may be repeated."
        ),
    ] = None,
    priority: Annotated[int, typer.Option("--priority", min=0, help="Lower ones are tried first.")] = 1,
    keys: Keys = KEYS,
) -> None:
    """Add a key: its secret goes to .env, all else to keys.json.

    What is not given is asked for, the secret without echo. Piped in, it is the first line, and proposals
    answer the rest: the models of the other keys, and a project of its own. What stands in the files stays;
    .env is readable by you alone afterwards.
    """
    if any(is_secret(Secret(word)) for word in (key_id or "", project or "", *(model or ()))):
        raise ConfigError(
            "an argument looks like a secret, and arguments can be seen by others: replace that secret by a "
            "new one, and type it when you are asked for it, or pipe it in"
        )
    present = _read(keys)
    key_id = _key_id(key_id, present)
    project = project or _asked("Its project, which shares its quotas", key_id)
    models = _models(model, present)
    name, where = secret_name(key_id), env_path(keys.parent)
    secret = None
    if present.environment.secret(name)[1] is None:
        complain(f"{name} is set already, and stays as it is")
    else:
        secret = checked_secret(ask_secret(f"The secret of {printable(key_id)} (not shown)"))
        _refuse_twin(secret, present)
    limits = {each: found for each, found in limits_in(project, present.entries).items() if each in models}
    write_keys(keys, where, [NewKey(key_id, models, project, secret, priority, limits)])
    say(printable(f"added: {key_id} (project {project}): {models_shown(models)}"))
    written = f"{keys}" if secret is None else f"{keys} and {where}"
    answers = any(GENERATE in usual_methods(each) for each in models)
    trial = f"keys test {key_id}" if answers else "check --online"
    say(printable(f"written: {written}; try it with: llm-router {trial}"))


def _read(path: Path) -> _Present:
    """Read what there is.

    Raises:
        ConfigError: The keys file has errors, other than missing secrets.
    """
    environment = read_environment(Environ(os.environ), ".env", path.parent, Report())
    if not os.path.lexists(path):
        return _Present((), _WORKLOADS, environment)
    _, report = examine(path, secrets_required=False, store_needed=False)
    report.raise_errors()
    file = read_keyfile(path, Report(), ("gemini",)) or KeyFile((), {}, _WORKLOADS)
    return _Present(file.entries, file.workloads, environment)


def _key_id(given: str | None, present: _Present) -> str:
    key_id = (given or _asked("Its key_id", next_key_id(present.key_ids))).strip()
    if key_id in present.key_ids:
        raise ConfigError(
            f"there is a key {key_id!r} already: choose another key_id, or to replace its secret, change "
            f"{secret_name(key_id)} in .env"
        )
    return key_id


def _asked(question: str, proposal: str) -> str:
    return ask(question, proposal) if can_ask() else proposal


def _models(given: list[str] | None, present: _Present) -> dict[str, str]:
    """Return the workload of each model that the key is to serve."""
    if given:
        return models_from(given, present.workloads, present.entries)
    known = {
        entry.model: entry.workload or workload_for(entry.model, present.workloads)
        for entry in present.entries
    }
    proposal = models_shown(known)
    answer = _asked("Its models", proposal)
    if not answer:
        raise ConfigError("which models does it serve? Pass --model MODEL=WORKLOAD, or use `llm-router init`")
    return known if answer == proposal else models_from(answer.split(","), present.workloads, present.entries)


def models_from(
    words: Iterable[str], workloads: Sequence[str], entries: Iterable[Entry] = ()
) -> dict[str, str]:
    """Return the models that were named as ``MODEL`` or ``MODEL=WORKLOAD``, each with its workload.

    Without one it is that of the other entries, or what the name speaks for.

    Raises:
        ConfigError: A workload is not one of ``workloads``, or there is no model.
    """
    known = {entry.model: entry.workload for entry in entries if entry.workload is not None}
    models: dict[str, str] = {}
    for word in words:
        name, _, workload = (part.strip() for part in word.partition("="))
        model = plain_model(name)
        if not model:
            raise ConfigError(f"{word!r} names no model: write MODEL=WORKLOAD")
        models[model] = workload or known.get(model) or workload_for(model, workloads)
        if models[model] not in workloads:
            raise ConfigError(f"unknown workload {workload!r}: use one of {', '.join(map(repr, workloads))}")
    if not models:
        raise ConfigError("no model is named: write MODEL=WORKLOAD")
    return models


def checked_secret(secret: Secret) -> Secret:
    """Return a secret that may be one.

    Raises:
        ConfigError: It is empty, or not the form of a secret. No character of it is in the message.
    """
    fault = secret_fault(secret)
    if fault is not None:
        raise ConfigError(f"the secret {fault}; nothing was changed")
    return secret


def _refuse_twin(secret: Secret, present: _Present) -> None:
    twin = twin_of(secret, present.key_ids, present.environment)
    if twin is not None:
        raise ConfigError(f"key {twin!r} has the same secret already; nothing was changed")
