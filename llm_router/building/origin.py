"""The files that a router was made from, so that they can be watched, and read again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from llm_router.domain.clock import Clock, SystemClock
from llm_router.engine.reloading import Terms
from llm_router.engine.requests import check_wait
from llm_router.errors import ConfigError

if TYPE_CHECKING:
    from llm_router.config import ConfigSource, ConfigWatch, Settings

__all__ = ["Origin", "read_again", "watch_of"]

# The configuration is imported where it is used: a router built from values needs none.


@attrs.define(eq=False)
class Origin:
    """What a router was made from.

    Attributes:
        source: Where the settings come from.
        settings: The present ones.
        overridden: The names of what the program has given itself, which wins over them.
    """

    source: ConfigSource
    settings: Settings
    overridden: frozenset[str]


async def read_again(origin: Origin | None, present: Terms) -> tuple[Settings, Terms]:
    """Read the files of a router again, in a thread: a large one takes a while.

    Raises:
        ConfigError: A file is broken, or the router was not made from files.
    """
    if origin is None:
        raise ConfigError(
            "this router was not made by Router.from_config, so there are no files to read again: "
            "pass reload() the deployments"
        )
    settings = await asyncio.to_thread(origin.source.load_after, origin.settings)
    fresh = Terms(
        settings.deployments,
        settings.inactive,
        settings.workloads,
        settings.max_retries,
        settings.base_backoff,
        check_wait(settings.max_wait),
    )
    return settings, fresh.but_as(present, origin.overridden)


def watch_of(source: ConfigSource | None, clock: Clock | None) -> ConfigWatch:
    """Return what watches the files of a source; it is yet to be started.

    Raises:
        ConfigError: There is no source, or watchfiles is not installed.
    """
    from llm_router.config import ConfigWatch, check_watchfiles  # noqa: PLC0415 - as above

    if source is None:
        raise ConfigError(
            "watch=True needs a source: use Router.from_config, or pass where the settings are from"
        )
    check_watchfiles()
    return ConfigWatch(source.files, clock or SystemClock())
