"""Check of what type the arguments of a router are, before it opens anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from llm_router.domain.deployment import Deployment
from llm_router.errors import ConfigError

__all__ = [
    "check_files",
    "check_providers",
    "check_types",
    "check_workloads",
    "deployments_in",
    "elements",
    "mapping",
]

# No message shows a value, since any may be a key that was passed in the wrong place.

_PROVIDER_METHODS = ("generate", "validate", "estimate_tokens")
_PROVIDER_REMEDY = "pass one with the methods of Provider, adapters by the provider of the keys, or None"


def check_types(
    strategy: object,
    provider: object,
    clock: object,
    histories: object,
    records: object,
    base_url: object,
    safety_settings: object,
) -> None:
    """Check that arguments of a router, if they are not None, are what their names say.

    Raises:
        ConfigError: One is not, or is a class; the message names it.
    """
    remedy = "pass LeastLoaded(), RoundRobin(), Weighted(), or one with the method of SelectionStrategy"
    _check_methods("strategy", "a strategy", strategy, ("order",), remedy)
    check_providers(provider)
    remedy = "leave it out, or pass one with the methods of Clock, such as ManualClock()"
    _check_methods("clock", "a clock", clock, ("time", "call_later"), remedy)
    if not isinstance(histories, str):
        remedy = (
            "leave it out, or pass a URL or one with the methods of HistoryStore, such as MemoryHistory()"
        )
        _check_methods("histories", "a store of histories", histories, ("load", "save", "delete"), remedy)
    if not isinstance(records, str):
        remedy = "leave it out, or pass a URL or one with the methods of RecordStore, such as MemoryRecords()"
        _check_methods("records", "a record store", records, ("get", "put", "delete", "add"), remedy)
    if base_url is not None and not isinstance(base_url, str):
        remedy = "pass the URL of a server, such as https://proxy.example:8443"
        raise ConfigError(f"base_url must be a string, not {_kind(base_url)}: {remedy}")
    mapping("safety_settings", safety_settings, "{'HARASSMENT': 'BLOCK_ONLY_HIGH'}")


def check_providers(provider: object) -> None:
    """Check that an adapter, or each of a mapping of them, has its methods.

    Raises:
        ConfigError: One lacks a method, or is a class; the message names it.
    """
    if not isinstance(provider, Mapping):
        _check_methods("provider", "an adapter", provider, _PROVIDER_METHODS, _PROVIDER_REMEDY)
        return
    for name, each in provider.items():
        if not isinstance(name, str):
            raise ConfigError(
                f"provider must map names to adapters, not {_kind(name)} to one: use what the keys give as "
                "their provider, such as 'gemini'"
            )
        if each is None:
            raise ConfigError(f"provider[{name!r}] must be an adapter, not None: leave the entry out")
        _check_methods(f"provider[{name!r}]", "an adapter", each, _PROVIDER_METHODS, _PROVIDER_REMEDY)


def check_files(path: object, env: object, env_file: object) -> None:
    """Check what a router's configuration is to be read from.

    Raises:
        ConfigError: A path is none, or the environment does not map strings to strings.
    """
    for name, value in (("path", path), ("env_file", "" if env_file is None else env_file)):
        if not isinstance(value, str | os.PathLike):
            raise ConfigError(
                f"{name} must be the path of a file, not {_kind(value)}: pass a string or a Path"
            )
    for variable, value in mapping("env", env, "os.environ").items():
        if not isinstance(variable, str) or not isinstance(value, str):
            which = f"env[{variable!r}]" if isinstance(variable, str) else "the name of a variable of env"
            wrong = value if isinstance(variable, str) else variable
            raise ConfigError(f"{which} must be a string, not {_kind(wrong)}: write it as text")


def check_workloads(workloads: object) -> tuple[str, ...]:
    """Return the workloads, from lightest to heaviest.

    Raises:
        ConfigError: They are not several different names in an order.
    """
    remedy = "pass a list from the lightest to the heaviest, such as ['light', 'heavy']"
    if isinstance(workloads, set | frozenset):
        raise ConfigError(f"workloads must have an order, unlike a {type(workloads).__name__}: {remedy}")
    names = elements("workloads", workloads, remedy)
    for name in names:
        if not isinstance(name, str) or not name:
            wrong = "an empty string" if name == "" else _kind(name)
            raise ConfigError(f"workloads must be names, not {wrong}: {remedy}")
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise ConfigError(f"workloads has {twice!r} twice: remove one")
    if not names:
        raise ConfigError(f"workloads is empty: {remedy}")
    return names


def deployments_in(name: str, deployments: object) -> tuple[Deployment, ...]:
    """Return the deployments of an argument.

    Raises:
        ConfigError: It holds something else.
    """
    remedy = "pass a list of Deployment objects, or use Router.from_config to read keys.json"
    found = elements(name, deployments, remedy)
    for each in found:
        if not isinstance(each, Deployment):
            raise ConfigError(f"{name} must be Deployment objects, not {_kind(each)}: {remedy}")
    return found


def elements(name: str, values: object, remedy: str) -> tuple[Any, ...]:
    """Return the elements of an argument that is a list of things; a string is none.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(values, str | bytes | type) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} must be a list, not {_kind(values)}: {remedy}")
    return tuple(values)


def mapping(name: str, values: object, example: str) -> dict[Any, Any]:
    """Return an argument that is a mapping or None, as a dictionary.

    Raises:
        ConfigError: It is neither.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a mapping, not {_kind(values)}: pass one, such as {example}")
    return {} if values is None else dict(values)


def _check_methods(name: str, what: str, value: object, methods: tuple[str, ...], remedy: str) -> None:
    """Check that an argument, unless it is None, is an object with some methods."""
    if value is None:
        return
    if isinstance(value, type):
        raise ConfigError(
            f"{name} must be {what}, not the class {value.__name__}: write {value.__name__}(…), or {remedy}"
        )
    lacking = [method for method in methods if not callable(getattr(value, method, None))]
    if lacking:
        raise ConfigError(f"{name} must be {what}, not {_kind(value)} without {lacking[0]}(): {remedy}")


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
