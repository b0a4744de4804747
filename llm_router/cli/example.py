"""The keys file that comes with the library: what commands run on that need no keys of the user's."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from llm_router.config import load_settings
from llm_router.errors import ConfigError

__all__ = ["example_keys", "example_models"]

_NAME = "keys.json.example"


def example_keys() -> Path:
    """Return the path of keys.json.example: in the working directory, else the installed one.

    Raises:
        ConfigError: There is neither.
    """
    root = Path(str(importlib.resources.files("llm_router")))
    for path in (Path(_NAME), root / _NAME, root.parent / _NAME):
        if path.is_file():
            return path
    raise ConfigError(f"{_NAME} is not in this directory and not installed: name a keys file with --keys")


def example_models() -> list[str]:
    """Return the models of keys.json.example, each once, in its order.

    Raises:
        ConfigError: There is no such file, or it is wrong.
    """
    settings = load_settings(example_keys(), env={}, env_file=None, secrets_required=False)
    return list(dict.fromkeys(deployment.model for deployment in settings.deployments))
