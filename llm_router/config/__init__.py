"""Configuration: keys.json, ``.env`` and the environment become frozen :class:`Settings`."""

from llm_router.config.environment import Environ
from llm_router.config.findings import Finding
from llm_router.config.settings import Settings, check_settings, load_settings
from llm_router.config.source import ConfigSource
from llm_router.config.watching import ConfigWatch, check_watchfiles

__all__ = [
    "ConfigSource",
    "ConfigWatch",
    "Environ",
    "Finding",
    "Settings",
    "check_settings",
    "check_watchfiles",
    "load_settings",
]
