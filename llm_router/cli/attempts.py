"""Tell on standard error what becomes of each request to the provider, as it happens."""

from __future__ import annotations

from collections.abc import Callable

from llm_router.cli.output import printable
from llm_router.errors import LLMRouterError
from llm_router.observe.base import AttemptBegan, AttemptEnded, Event, RequestEvent, SendEnded, Waited

__all__ = ["Attempts"]

_WORTH_SAYING = 0.5
"""Seconds of waiting below which nothing is said of it."""


class Attempts:
    """An observer that says in a line what came of each attempt, and how long a request waited for quota.

    Args:
        tell: What is given each line.
        name: Says which request it is about, before each line; "" for nothing.
    """

    def __init__(
        self, tell: Callable[[str], object], name: Callable[[RequestEvent], str] = lambda _: ""
    ) -> None:
        self._tell = tell
        self._name = name
        self._waits: dict[str, float] = {}

    def observe(self, event: Event) -> None:
        """Tell what an event says of an attempt, or of a wait that came to something."""
        if isinstance(event, AttemptEnded):
            deployment = event.deployment
            where = f"{deployment.model} · {deployment.key.key_id} · {event.seconds:.2f} s"
            self._say(event, f"{event.number}. {where} · {_outcome(event.error)}")
        elif isinstance(event, Waited) and event.reason != "backoff":
            self._waits[event.request_id] = self._waits.get(event.request_id, 0.0) + event.seconds
        elif isinstance(event, AttemptBegan | SendEnded):
            waited = self._waits.pop(event.request_id, 0.0)
            was_cancelled = isinstance(event, SendEnded) and event.response is None
            if waited >= _WORTH_SAYING and not was_cancelled:
                self._say(event, f"waited {waited:.1f} s for quota")

    def _say(self, event: RequestEvent, words: str) -> None:
        name = self._name(event)
        self._tell(printable(f"{name}: {words}" if name else words))


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "answered"
    return str(error) if isinstance(error, LLMRouterError) else "given up"
