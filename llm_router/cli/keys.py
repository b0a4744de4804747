"""``llm-router keys``: lift what keeps a key out of use, disable a key, enable it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_router.cli.options import KEYS, AsJson, Keys, Store
from llm_router.cli.output import complain, print_json, printable, say, show_table
from llm_router.cli.routers import choose_store, open_router
from llm_router.cli.words import state_of
from llm_router.config import load_settings
from llm_router.domain.status import KeyStatus, without_deprecated
from llm_router.engine.keys import KeyManager
from llm_router.errors import ConfigError

__all__ = ["keys"]

KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key_id of the key.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Only this model, on all keys that share the project of the key."),
]

_Change = Callable[[KeyManager], Coroutine[Any, Any, list[KeyStatus]]]

keys = typer.Typer(
    help="Lift, disable or enable keys, for every process that shares the store.\n\n"
    "Processes that run notice it at their next call of the store.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@keys.command()
def lift(
    key: KeyId, *, model: Model = None, as_json: AsJson = False, keys: Keys = KEYS, store: Store = None
) -> None:
    """End the cooldowns and quarantines of a key, so that it is tried again at once.

    What is disabled stays disabled.
    """
    _change("lifted", key, model, lambda manager: manager.lift(key, model), keys, store, as_json=as_json)


@keys.command()
def disable(
    key: KeyId,
    *,
    model: Model = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, as statuses are to show it.")] = "",
    as_json: AsJson = False,
    keys: Keys = KEYS,
    store: Store = None,
) -> None:
    """Keep a key out of use until it is enabled again."""
    _change(
        "disabled",
        key,
        model,
        lambda manager: manager.disable(key, model, reason=reason),
        keys,
        store,
        as_json=as_json,
    )


@keys.command()
def enable(
    key: KeyId, *, model: Model = None, as_json: AsJson = False, keys: Keys = KEYS, store: Store = None
) -> None:
    """Use a key again that was disabled: with --model if it was disabled with --model."""
    _change("enabled", key, model, lambda manager: manager.enable(key, model), keys, store, as_json=as_json)


def _change(
    done: str, key: str, model: str | None, change: _Change, path: Path, store: str | None, *, as_json: bool
) -> None:
    """Make a change, and print what it came to.

    Raises:
        ConfigError: The store is the memory of this process, which ends with it.
    """
    settings = load_settings(path, store_needed=store is None)
    if choose_store(settings, store).startswith("memory:"):
        raise ConfigError(
            "memory:// is the memory of this command, which no other process would notice: set "
            "LLM_ROUTER_STORE, or --store, to the URL of the store that your programs use"
        )

    async def make() -> list[KeyStatus]:
        async with open_router(settings, store) as router:
            return await change(router.keys)

    statuses = asyncio.run(make())
    if as_json:
        print_json([without_deprecated(row) for row in statuses])
        return
    say(f"{done}: {printable(key if model is None else f'{key}/{model}')}")
    show_table(
        ("key", "model", "project", "state"),
        [(row["key_id"], row["model"], row["project"], state_of(row)) for row in statuses],
    )
    if done != "disabled" and any(row["disabled"] for row in statuses):
        complain(
            "what is still disabled: llm-router keys enable KEY, or KEY --model MODEL, as it was disabled"
        )
