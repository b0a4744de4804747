"""The file that a batch reads: one prompt a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from llm_router.errors import InvalidRequestError

__all__ = ["Prompt", "digest_of", "parse", "read_lines"]

_DIGEST = 8


@attrs.frozen
class Prompt:
    """What one line asks for; None is left to the options of the command.

    Attributes:
        prompt: The prompt.
        id: Whatever the line calls itself; repeated in the result.
        workload: The workload wished for.
        model: The model wished for.
        max_output_tokens: Upper bound of the answer, in tokens.
        system_instruction: The system instruction.
        temperature: Sampling temperature.
    """

    prompt: str
    id: str | int | None = None
    workload: str | None = None
    model: str | None = None
    max_output_tokens: int | None = None
    system_instruction: str | None = None
    temperature: float | None = None


_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "id": (str, int),
    "workload": (str,),
    "model": (str,),
    "max_output_tokens": (int,),
    "system_instruction": (str,),
    "temperature": (int, float),
}


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers, from 1.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def digest_of(line: bytes) -> str:
    """Return what tells one line from another, the space around it aside."""
    return hashlib.blake2b(line.strip(), digest_size=_DIGEST).hexdigest()


def parse(line: bytes) -> Prompt:
    """Read one line.

    Raises:
        InvalidRequestError: It is no such line; the message says what is wrong.
    """
    try:
        given = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"not UTF-8: {error.reason}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidRequestError('not an object: write {"prompt": "…"}')
    _check(given)
    return Prompt(**given)


def _check(given: dict[str, Any]) -> None:
    if unknown := sorted(given.keys() - _TYPES.keys()):
        raise InvalidRequestError(f"unknown field {unknown[0]!r}: use {', '.join(_TYPES)}")
    if given.get("prompt") is None:
        raise InvalidRequestError("no prompt: write it as the field 'prompt'")
    for name, value in given.items():
        types = _TYPES[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            wanted = " or ".join(kind.__name__ for kind in types)
            raise InvalidRequestError(f"{name} must be {wanted}, not {type(value).__name__}")
        if isinstance(value, str) and not _is_text(value):
            raise InvalidRequestError(f"{name} holds half a character (a lone surrogate)")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
