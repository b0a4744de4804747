"""The input of a batch: a file with one prompt per line."""

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
    """The content of one line; for a field that is None, the options of the command decide.

    Attributes:
        prompt: The prompt.
        id: The line's own name for itself, repeated in the result.
        workload: The preferred workload.
        model: The preferred model.
        max_output_tokens: The longest answer allowed, in tokens.
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


_FIELDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "prompt": ("a string", (str,)),
    "id": ("a string or a whole number", (str, int)),
    "workload": ("a string", (str,)),
    "model": ("a string", (str,)),
    "max_output_tokens": ("a whole number", (int,)),
    "system_instruction": ("a string", (str,)),
    "temperature": ("a number", (int, float)),
}
"""The fields of a line: what each must be, in words and as types."""

_KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a decimal number", list: "a list"}


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and content of each line of a file that is not blank.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def digest_of(line: bytes) -> str:
    """Return a digest by which a changed line is recognised; space around the line does not count."""
    return hashlib.blake2b(line.strip(), digest_size=_DIGEST).hexdigest()


def parse(line: bytes) -> Prompt:
    """Return the prompt in one line.

    Raises:
        InvalidRequestError: The line is wrong; the message says why and what to do.
    """
    try:
        given = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"not UTF-8 ({error.reason}): save the file as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequestError(f'not JSON ({error}): write {{"prompt": "…"}}') from None
    if not isinstance(given, dict):
        raise InvalidRequestError('not an object: write {"prompt": "…"}')
    _check(given)
    return Prompt(**given)


def _check(given: dict[str, Any]) -> None:
    if unknown := sorted(given.keys() - _FIELDS.keys()):
        raise InvalidRequestError(f"unknown field {unknown[0]!r}: use {', '.join(_FIELDS)}")
    if given.get("prompt") is None:
        raise InvalidRequestError("no prompt: add the field 'prompt'")
    for name, value in given.items():
        wanted, types = _FIELDS[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise InvalidRequestError(f"{name} must be {wanted}, not {_KINDS.get(type(value), 'an object')}")
        if isinstance(value, str) and not _is_text(value):
            raise InvalidRequestError(f"{name} contains half a character (a lone surrogate): correct it")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
