"""``llm-router init``: keys.json and ``.env`` made from secrets and from what the provider says of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from llm_router.cli.asking import ask, ask_secret, can_ask
from llm_router.cli.check import summary
from llm_router.cli.keys_add import checked_secret, models_from
from llm_router.cli.options import KEYS
from llm_router.cli.output import FAILED, complain, count, printable, say
from llm_router.cli.probing import lists_of_models, prove_projects
from llm_router.cli.reasons import reason_of
from llm_router.config import Environ
from llm_router.config.adding import NewKey, write_keys
from llm_router.config.environment import Environment, env_path, read_environment, secret_fault, secret_name
from llm_router.config.findings import Report
from llm_router.config.proposals import models_shown, next_key_id, proposed_models
from llm_router.config.settings import examine
from llm_router.domain.deployment import Key
from llm_router.domain.queries import ModelInfo
from llm_router.domain.secret import Secret
from llm_router.errors import ConfigError, LLMRouterError, ProviderError

__all__ = ["init"]

_WORKLOADS = ("light", "medium", "heavy")
_YES = ("y", "yes")


def init(
    path: Annotated[Path, typer.Argument(envvar="LLM_ROUTER_KEYS", help="The keys file to make.")] = KEYS,
    *,
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Accept what is proposed; secrets may be piped in, one on each line."),
    ] = False,
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="Use every API_KEY_… that .env or the environment has already."),
    ] = False,
    projects: Annotated[
        bool | None,
        typer.Option(
            "--projects/--no-projects",
            help="Find out which keys share a project: upload a small file with each, and remove it.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a keys file that exists.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for each key.")] = 30.0,
) -> None:
    """Make keys.json and .env: ask for keys, and ask the provider which models each of them serves.

    Secrets are asked for without echo, until an empty one. Each workload gets the newest settled model that
    speaks for it. Nothing is generated, no quota is used, and nothing is written before the end. The exit
    code is 1 if a key had to be left out.
    """
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{path} exists: add a key to it with `llm-router keys add`, or pass --force")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a directory: make it first")
    if not yes and not can_ask():
        raise ConfigError("there is no terminal: pass --yes, and pipe the secrets in, one on each line")
    report = Report()
    environment = read_environment(Environ(os.environ), ".env", path.parent, report)
    base_url = environment.switches(store_needed=False).base_url
    report.raise_errors()
    keys = _collect(environment, reuse=reuse, asks=not yes)
    served, left_out = _ask_models(keys, base_url, timeout)
    chosen = _choose_models(served, asks=not yes)
    named = _projects(list(served), base_url, timeout, projects=projects, asks=not yes)
    new = []
    for key, models in served.items():
        names = {info.name for info in models}
        mine = {model: workload for model, workload in chosen.items() if not names or model in names}
        if mine:
            is_set = environment.secret(secret_name(key.key_id))[1] is None
            new.append(NewKey(key.key_id, mine, named.get(key.key_id), None if is_set else key.secret))
        else:
            left_out = True
            complain(printable(f"{key.key_id}: left out: it is served none of these models"))
    if not new:
        raise ConfigError("no key serves any of these models: nothing was written")
    write_keys(path, env_path(path.parent), new, fresh=True)
    _close(path, new)
    if left_out:
        raise typer.Exit(FAILED)


def _collect(environment: Environment, *, reuse: bool, asks: bool) -> list[Key]:
    """Return the keys whose secrets are typed or piped in, and those set already if that is wanted.

    Raises:
        ConfigError: There is none, or one that is piped in cannot be a secret.
    """
    keys: list[Key] = []
    present = [
        Key(key_id, Secret(environment.secret(name)[0])) for name, key_id in environment.named().items()
    ]
    names = ", ".join(secret_name(key.key_id) for key in present)
    # Not unasked: they might be keys of something else, which Google must not see.
    if present and (reuse or (asks and _agreed(f"Use what is set already ({names})?", "no"))):
        for key in present:
            _take(keys, key)
    taken = [key.key_id for key in present]
    while True:
        key_id = next_key_id(taken)
        secret = ask_secret(f"The secret of {key_id} (not shown; nothing to end)")
        if not secret:
            break
        if can_ask() and (fault := secret_fault(secret)) is not None:
            complain(f"that {fault}: try again")
            continue
        same = _twin(present, checked_secret(secret))
        if _take(keys, same or Key(key_id, secret)) and same is None:
            taken.append(key_id)
    if not keys:
        raise ConfigError("no secret was given: nothing was written")
    return keys


def _take(keys: list[Key], key: Key) -> bool:
    """Add a key unless its secret is there already; return whether it was added."""
    twin = _twin(keys, key.secret)
    if twin is not None:
        complain(f"that is the secret of {twin.key_id}: left out")
        return False
    keys.append(key)
    return True


def _twin(keys: Iterable[Key], secret: Secret) -> Key | None:
    return next((key for key in keys if key.secret.reveal() == secret.reveal()), None)


def _agreed(question: str, default: str) -> bool:
    return ask(question, default).lower() in _YES


def _ask_models(
    keys: Sequence[Key], base_url: str | None, timeout: float
) -> tuple[dict[Key, list[ModelInfo]], bool]:
    """Return which models each key is served, and whether a key is not alive; such ones are left out.

    Raises:
        LLMRouterError: No key is alive.
    """
    answers = asyncio.run(lists_of_models(keys, base_url, timeout))
    served: dict[Key, list[ModelInfo]] = {}
    errors: list[LLMRouterError] = []
    for key, answer in zip(keys, answers, strict=True):
        if isinstance(answer, LLMRouterError):
            errors.append(answer)
            complain(printable(f"{key.key_id}: left out: {reason_of(answer)}"))
        else:
            served[key] = answer
            say(f"{key.key_id}: alive, {count(len(answer), 'model')}")
    if not served:
        raise ProviderError("no key is known to be alive: nothing was written", kind="key")
    return served, bool(errors)


def _choose_models(served: Mapping[Key, Sequence[ModelInfo]], *, asks: bool) -> dict[str, str]:
    """Return the models to use, with the workload of each; ask again after a wrong answer.

    Raises:
        ConfigError: There is nothing to propose, or the input has ended.
    """
    every = {info.name: info for models in served.values() for info in models}
    proposal = proposed_models(every.values(), _WORKLOADS)
    if not asks:
        if not proposal:
            raise ConfigError("the provider lists no model that answers prompts: write keys.json by hand")
        say(f"models: {models_shown(proposal)}")
        return proposal
    say(printable(f"served: {', '.join(every)}"))
    while True:
        answer = ask("Models, each with its workload", models_shown(proposal))
        try:
            return models_from(answer.split(","), _WORKLOADS)
        except ConfigError as error:
            complain(f"{printable(str(error))}: try again")


def _projects(
    keys: Sequence[Key], base_url: str | None, timeout: float, *, projects: bool | None, asks: bool
) -> dict[str, str]:
    """Return the project of each key, as far as it is known."""
    if len(keys) == 1:
        return {keys[0].key_id: keys[0].key_id}
    if projects is None:
        question = "Find out which keys share a project, by a small file uploaded with each, and removed?"
        projects = asks and _agreed(question, "yes")
    if not projects and asks:
        return {key.key_id: ask(f"Project of {key.key_id}", key.key_id) for key in keys}
    if not projects:
        complain("whether keys share a project was not asked: each counts as one of its own (see --projects)")
        return {}
    proven = asyncio.run(prove_projects(keys, base_url, timeout))
    for key_id, error in proven.failed.items():
        complain(printable(f"{key_id}: its project could not be found out: {reason_of(error)}"))
    named: dict[str, str] = {}
    for place, group in enumerate(proven.groups, 1):
        if len(group) > 1:
            say(f"one project: {', '.join(group)}")
        named |= dict.fromkeys(group, group[0] if len(group) == 1 else f"project-{place}")
    return named


def _close(path: Path, new: Sequence[NewKey]) -> None:
    """Say what was written, and what it allows."""
    written = [str(path)]
    if any(key.secret is not None for key in new):
        written.append(str(env_path(path.parent)))
    say(f"written: {' and '.join(written)}; try it with: llm-router keys test")
    settings, _ = examine(path, store_needed=False)
    if settings is not None:
        say(printable(summary(settings)))
