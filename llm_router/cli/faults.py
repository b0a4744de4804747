"""Faults of the emulator as the command line names them: ``503:0.1``, ``hang``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_router.errors import ConfigError

if TYPE_CHECKING:
    from llm_router.emulator import Fault, GeminiEmulator

__all__ = ["FAULT_HELP", "inject_faults"]

_WORDS = (
    "drop",
    "hang",
    "empty",
    "block",
    "safety",
    "no-content",
    "cut-json",
    "bare-429",
    "list-429",
    "stream-cut",
    "stream-drop",
    "stream-error",
    "stream-hang",
)
_FIRST_ERROR = 400

FAULT_HELP = (
    "What goes wrong with requests that generate, as WHAT or WHAT:SHARE, such as 503:0.1 for every tenth "
    "request, at random; may be repeated. WHAT is an HTTP status from 400 to 599, or one of "
    f"{', '.join(_WORDS)}."
)


def inject_faults(emulator: GeminiEmulator, texts: Iterable[str]) -> None:
    """Have an emulator show faults that are named as ``--fault`` has them.

    Raises:
        ConfigError: One of them is none; the message names it and what there is.
    """
    for text in texts:
        what, colon, share = text.partition(":")
        emulator.inject(_fault(what, text), share=_share(share, text) if colon else 1.0)


def _fault(what: str, text: str) -> Fault:
    from llm_router.emulator import Fault  # noqa: PLC0415 - heavy, an extra

    if what in _WORDS:
        fault: Fault = getattr(Fault, what.replace("-", "_"))()
        return fault
    if what in {str(status.value) for status in HTTPStatus if status >= _FIRST_ERROR}:
        return Fault.status(int(what))
    raise ConfigError(
        f"--fault {text!r}: {what!r} is no fault: write an HTTP status from 400 to 599, such as 503, "
        f"or one of {', '.join(_WORDS)}"
    )


def _share(share: str, text: str) -> float:
    try:
        number = float(share)
    except ValueError:
        number = math.nan
    if 0 < number <= 1:
        return number
    raise ConfigError(
        f"--fault {text!r}: {share!r} is no share of the requests: write a number above 0, and at most 1, "
        f"such as {text.partition(':')[0]}:0.1"
    )
