"""Observe with the standard library's logging: one line an event."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from llm_router.observe.base import (
    CooledDown,
    Disabled,
    Event,
    Lifted,
    LimitLearnt,
    Plain,
    Quarantined,
    Reloaded,
    StoreBack,
    StoreLost,
)

__all__ = ["LEVELS", "LoggingObserver"]

LEVELS: Mapping[type[Event], int] = {
    CooledDown: logging.INFO,
    Disabled: logging.INFO,
    Lifted: logging.INFO,
    LimitLearnt: logging.INFO,
    Reloaded: logging.INFO,
    StoreBack: logging.INFO,
    Quarantined: logging.WARNING,
    StoreLost: logging.WARNING,
}
"""The levels of changes of state; all other events are logged at DEBUG."""


class LoggingObserver:
    """Logs each event in one line: its name, then ``field=value``; never a prompt, an answer or a key.

    What happens to a request is logged at DEBUG, a change of state at INFO or WARNING. Each record also has
    the fields as attributes, for structured logs (``extra=``): ``router_event``, ``router_request_id``,
    ``router_key_id``, ``router_metadata.tenant`` and so on.

    Args:
        logger: Where to log; by default ``llm_router.events``.
        levels: Levels by class of event, over :data:`LEVELS`.
    """

    def __init__(
        self, logger: logging.Logger | None = None, *, levels: Mapping[type[Event], int] | None = None
    ) -> None:
        self._log = logger or logging.getLogger("llm_router.events")
        self._levels = {**LEVELS, **(levels or {})}

    def observe(self, event: Event) -> None:
        """Log an event."""
        level = self._levels.get(type(event), logging.DEBUG)
        if self._log.isEnabledFor(level):
            fields = event.fields()
            shown = " ".join(f"{name}={_shown(value)}" for name, value in fields.items() if name != "event")
            extra = {f"router_{name}": value for name, value in fields.items()}
            self._log.log(level, "%s %s", event.name, shown, extra=extra)

    def __repr__(self) -> str:
        return f"LoggingObserver({self._log.name!r})"


def _shown(value: Plain) -> str:
    """Return a value as a line shows it: floats are times, of which a millisecond is enough."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return repr(text) if not text or any(each.isspace() or each in "\"'=" for each in text) else text
