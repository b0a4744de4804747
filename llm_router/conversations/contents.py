"""Contents as conversations keep and send them: prompts, answers, and histories without empty parts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llm_router.conversations.base import Turn
from llm_router.conversations.media import part_of
from llm_router.domain.fields import camel_case, field
from llm_router.domain.request import Origin, Request
from llm_router.domain.response import Response

__all__ = [
    "answering_model",
    "answers_call",
    "clean_turn",
    "ends_with_call",
    "history_of",
    "request_of",
    "said_in",
    "split_signatures",
    "turns_in",
    "turns_of",
]

_DATA = (
    "text",
    "inline_data",
    "file_data",
    "function_call",
    "function_response",
    "executable_code",
    "code_execution_result",
    "tool_call",
    "tool_response",
)
"""The fields of a part of which the Gemini API demands one."""

_ABOUT = ("thought", "thought_signature", "video_metadata", "media_resolution", "part_metadata")
"""Fields that only describe a part."""

_STORED_SIGNATURE, _SIGNATURE = "thoughtSignature", "thought_signature"
"""A signature in the API's JSON, as text, so that histories can be kept as JSON; and in the SDK, as bytes."""


def said_in(prompt: Any) -> tuple[Any, ...]:
    """Return a prompt as contents with a role, without empty parts; an empty tuple if there is nothing."""
    kept = (_without(content, _is_empty) for content in _contents(prompt))
    return tuple(content for content in kept if content is not None)


def _contents(prompt: Any) -> Iterable[Any]:
    if isinstance(prompt, str):
        return ({"role": "user", "parts": [{"text": prompt}]},)
    if isinstance(prompt, Sequence):
        return (content for item in prompt for content in _contents(item))
    if _get(prompt, "parts") is not None:
        return (prompt,)
    return ({"role": "user", "parts": [part_of(prompt)]},)


def turns_of(said: tuple[Any, ...], response: Response) -> tuple[Turn, ...]:
    """Return what an answer adds to a history, sizes unknown; nothing if it failed or has no content.

    Each step on the way to the answer, in which functions were called, is a turn of its own.
    """
    turns: list[Turn] = []
    for step in response.steps:
        answer = _without(step.content, _is_left_out)
        turns.append(Turn((*said, _storable(answer)), 0, answers_call(said), step.model))
        said = (step.results,)
    last = _turn_of(said, response)
    return () if last is None else (*turns, last)


def turns_in(history: Any) -> tuple[Turn, ...]:
    """Return the turns of a history that is given as contents, sizes unknown.

    A turn ends with the model's last answer before the user speaks again.
    """
    turns: list[tuple[Any, ...]] = []
    for content in said_in(history):
        is_new = not turns or (_get(content, "role") != "model" and _get(turns[-1][-1], "role") == "model")
        if is_new:
            turns.append(())
        turns[-1] = (*turns[-1], content)
    return tuple(Turn(contents, 0, answers_call(contents)) for contents in turns)


def _turn_of(said: tuple[Any, ...], response: Response) -> Turn | None:
    if not response.success:
        return None
    answer = _without(response.content, _is_left_out)
    if answer is None and response.answer:
        answer = {"role": "model", "parts": [{"text": response.answer}]}
    if answer is None:
        return None
    model = answering_model(response)
    return Turn((*said, _storable(answer)), 0, answers_call(said), model)


def clean_turn(turn: Turn) -> Turn | None:
    """Return a turn of a history that may be old or another's, fit to be sent; None if part of it is empty.

    Empty parts and thoughts are left out.
    """
    contents = tuple(_without(content, _is_left_out) for content in turn.contents)
    if not contents or None in contents:
        return None
    # A turn that an earlier version has pickled has no model, not even None.
    return Turn(contents, turn.tokens, answers_call(contents), getattr(turn, "model", None))


def request_of(turns: Iterable[Turn], said: tuple[Any, ...]) -> Request:
    """Return the request for ``said`` after ``turns``, with contents for any model.

    What only the model that gave an answer understands is not in the contents, but in the origins.
    """
    contents: list[Any] = []
    origins: list[Origin] = []
    for turn in turns:
        last = len(turn.contents) - 1
        for index, content in enumerate(turn.contents):
            portable, signatures = split_signatures(content)
            if signatures is not None:
                # Only the last of them is an answer to this turn; others came with the prompt.
                model = turn.model if index == last else None
                origins.append(Origin(len(contents), model, signatures))
            contents.append(portable)
    return Request(contents=[*contents, *said], origins=tuple(origins) or None)


def answering_model(response: Response) -> str | None:
    """Return the model that answered, by the name of its deployment as far as that is known."""
    return response.attempt_log[-1].model if response.attempt_log else response.model


def history_of(turns: Iterable[Turn]) -> tuple[Any, ...]:
    """Return the contents of ``turns`` in a form that can be sent to any model."""
    return tuple(split_signatures(content)[0] for turn in turns for content in turn.contents)


def answers_call(contents: tuple[Any, ...]) -> bool:
    """Return whether contents begin with the answer to a function call."""
    return bool(contents) and any(field(part, "function_response") for part in _parts(contents[0]))


def ends_with_call(turn: Turn) -> bool:
    """Return whether the answer of a turn calls a function."""
    return any(field(part, "function_call") for part in _parts(turn.contents[-1]))


# --- parts --------------------------------------------------------------------------------------------


def _without(content: Any, unwanted: Callable[[Any], bool]) -> Any:
    """Return ``content`` without the unwanted parts, itself if there are none, or None if nothing is left.

    Contents of a form of their own, as another provider may use, are left alone.
    """
    parts = _get(content, "parts")
    if not isinstance(parts, list | tuple):
        return content or None
    kept = [part for part in parts if not unwanted(part)]
    if not kept:
        return None
    if len(kept) == len(parts):
        return content
    rest = content if isinstance(content, Mapping) else {"role": _get(content, "role")}
    return {**rest, "parts": kept}


def _is_left_out(part: Any) -> bool:
    return bool(field(part, "thought")) or _is_empty(part)


def _is_empty(part: Any) -> bool:
    """Return whether the Gemini API would refuse a part for having no data."""
    if part is None or isinstance(part, str):
        return not part
    if not isinstance(part, Mapping):
        if not (hasattr(part, "inline_data") and hasattr(part, "function_call")):
            return False  # not a part of the SDK: other objects, such as files and images, are data
        part = {name: value for name, value in vars(part).items() if value is not None}
    known = [name for name in _DATA if name in part or camel_case(name) in part]
    if known:
        return all(_is_blank(name, field(part, name)) for name in known)
    about = {*_ABOUT, *map(camel_case, _ABOUT)}
    return not any(value for name, value in part.items() if name not in about)


def _is_blank(name: str, value: Any) -> bool:
    return not value or (name == "inline_data" and not field(value, "data"))


def _parts(content: Any) -> Sequence[Any]:
    parts = _get(content, "parts")
    return parts if isinstance(parts, list | tuple) else ()


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


# --- signatures ---------------------------------------------------------------------------------------


def _storable(answer: Any) -> Any:
    """Return an answer with its signatures as text."""
    portable, signatures = split_signatures(answer)
    if portable is answer or signatures is None:
        return answer
    parts = [
        part if signature is None else {**part, _STORED_SIGNATURE: base64.b64encode(signature).decode()}
        for part, signature in zip(portable["parts"], signatures, strict=True)
    ]
    return {**portable, "parts": parts}


def split_signatures(content: Any) -> tuple[Any, tuple[bytes | None, ...] | None]:
    """Return ``content`` without its signatures, and these; None for them if it is not a model's answer."""
    parts = _parts(content)
    if not parts or not isinstance(content, Mapping) or content.get("role") != "model":
        return content, None
    if not any(_is_signed(part) for part in parts):
        return content, (None,) * len(parts)
    signatures = tuple(_signature(part) for part in parts)
    return {**content, "parts": [_unsigned(part) for part in parts]}, signatures


def _is_signed(part: Any) -> bool:
    return isinstance(part, Mapping) and (_SIGNATURE in part or _STORED_SIGNATURE in part)


def _unsigned(part: Any) -> Any:
    if not _is_signed(part):
        return part
    return {name: value for name, value in part.items() if name not in (_SIGNATURE, _STORED_SIGNATURE)}


def _signature(part: Any) -> bytes | None:
    """Return the signature of a part, or None if it has none that can be read."""
    signature = field(part, _SIGNATURE)
    if not isinstance(signature, str):
        return signature if isinstance(signature, bytes) and signature else None
    standard = signature.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True) or None
    except (binascii.Error, ValueError):
        return None
