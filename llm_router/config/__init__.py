"""Configuration: keys.json, ``.env`` and the environment become frozen :class:`Settings`."""

from llm_router.config.environment import Environ
from llm_router.config.findings import Finding
from llm_router.config.settings import Settings, check_settings, load_settings

__all__ = ["Environ", "Finding", "Settings", "check_settings", "load_settings"]
