"""``llm-router keys``: add and list keys, lift what keeps one out of use, disable it, enable it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_router.cli import keys_add, keys_limits, keys_list, keys_test
from llm_router.cli.options import KEYS, AsJson, KeyId, Keys, OneModel, Store
from llm_router.cli.output import complain, print_json, printable, say, show_table
from llm_router.cli.routers import choose_shared_store, open_router
from llm_router.cli.words import state_of
from llm_router.config import load_settings
from llm_router.domain.status import KeyStatus, without_deprecated
from llm_router.engine.keys import KeyManager

__all__ = ["keys"]

_Change = Callable[[KeyManager], Coroutine[Any, Any, list[KeyStatus]]]

keys = typer.Typer(
    help="List, add, test, lift, disable or enable keys; show their limits.\n\n"
    "What lift, disable, enable and limits change holds for every process that shares the store; "
    "those that run notice it at their next call of it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

keys.command("list")(keys_list.show)
keys.command()(keys_add.add)
keys.command()(keys_limits.limits)
keys.command("test")(keys_test.try_out)


@keys.command()
def lift(
    key: KeyId, *, model: OneModel = None, as_json: AsJson = False, keys: Keys = KEYS, store: Store = None
) -> None:
    """End the cooldowns and quarantines of a key, so that it is tried again at once.

    The limits that were learnt for it are forgotten as well. What is disabled stays disabled.
    """
    _change("lifted", key, model, lambda manager: manager.lift(key, model), keys, store, as_json=as_json)


@keys.command()
def disable(
    key: KeyId,
    *,
    model: OneModel = None,
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
    key: KeyId, *, model: OneModel = None, as_json: AsJson = False, keys: Keys = KEYS, store: Store = None
) -> None:
    """Use a key again that was disabled: with --model if it was disabled with --model."""
    _change("enabled", key, model, lambda manager: manager.enable(key, model), keys, store, as_json=as_json)


def _change(
    done: str, key: str, model: str | None, change: _Change, path: Path, store: str | None, *, as_json: bool
) -> None:
    """Make a change, and print what it came to."""
    settings = load_settings(path, store_needed=store is None)
    choose_shared_store(settings, store)

    async def make() -> list[KeyStatus]:
        async with open_router(settings, store) as router:
            return await change(router.keys)

    statuses = asyncio.run(make())
    if as_json:
        print_json([without_deprecated(row) for row in statuses])
        return
    remaining = (
        [] if done == "disabled" else _still_disabled(statuses, enabled=model, by_lift=done == "lifted")
    )
    but = ", but not all of it can be used" if remaining else ""
    say(f"{done}: {printable(key if model is None else f'{key}/{model}')}{but}")
    show_table(
        ("key", "model", "project", "state"),
        [(row["key_id"], row["model"], row["project"], state_of(row)) for row in statuses],
    )
    for line in remaining:
        complain(printable(line))


def _still_disabled(statuses: list[KeyStatus], *, enabled: str | None, by_lift: bool) -> list[str]:
    """Say what is still disabled after a lift, or after a model (None for a key) was enabled, and the remedy.

    A key and a model of it are disabled each by itself: whatever the change has not enabled is the other one.
    """
    disabled = [row for row in statuses if row["disabled"]]
    if by_lift and disabled:
        return [
            "what is still disabled: llm-router keys enable KEY, or KEY --model MODEL, as it was disabled"
        ]
    if enabled is not None:
        ids = dict.fromkeys(row["key_id"] for row in disabled)
        return [f"the key {each} itself is still disabled: llm-router keys enable {each}" for each in ids]
    names = dict.fromkeys((row["key_id"], row["model"]) for row in disabled)
    return [
        f"{each}/{model} is still disabled by itself: llm-router keys enable {each} --model {model}"
        for each, model in names
    ]
