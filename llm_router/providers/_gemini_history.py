"""Answers that later requests repeat: what is kept of one, and how each model is sent it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_router.domain.request import Origin, Request

__all__ = ["AnswerParts", "contents_for"]

_SIGNATURE = "thought_signature"

_PLACEHOLDER = base64.urlsafe_b64decode("skip_thought_signature_validator")
"""What Google documents for a call that another model made (ai.google.dev, "Thought signatures", FAQ).

The API expects this very text. The SDK encodes signatures, so it is given what is encoded as the text.
"""


class AnswerParts:
    """Collects the parts of one answer that a later request can send back, as plain dictionaries.

    Thoughts and parts without data are left out; a part keeps its signature, with which its model recognises
    it. A signature that comes on a part that is left out (Gemini streams it on an empty text at the end, or
    on a thought before a function call) goes to the part it was made for: the first function call, or else
    the last part.

    Args:
        joins_text: Whether consecutive texts without a signature become one part, as in a stream.
    """

    def __init__(self, *, joins_text: bool = False) -> None:
        self._joins_text = joins_text
        self._parts: list[dict[str, Any]] = []
        self._from_thought: bytes | None = None

    def read(self, candidate: Any) -> dict[str, Any] | None:
        """Add the parts of ``candidate``; return the content so far, or None if it has no part."""
        content = None if candidate is None else candidate.content
        for part in (content.parts if content is not None else None) or ():
            if _is_kept(part):
                self._add(part.model_dump(exclude_none=True))
            elif part.thought:
                self._from_thought = part.thought_signature or self._from_thought
            elif part.thought_signature:
                self._sign(part.thought_signature)
        return {"role": "model", "parts": [*self._parts]} if self._parts else None

    def _add(self, part: dict[str, Any]) -> None:
        last = self._parts[-1] if self._parts else {}
        if self._joins_text and part.keys() == last.keys() == {"text"}:
            self._parts[-1] = {"text": last["text"] + part["text"]}
            return
        if self._from_thought is not None and "function_call" in part:
            part.setdefault(_SIGNATURE, self._from_thought)
            self._from_thought = None
        self._parts.append(part)

    def _sign(self, signature: bytes) -> None:
        """Sign the part that a signature without one was made for, unless it is signed."""
        if self._parts:
            index = next(_calls(self._parts), len(self._parts) - 1)
            self._parts[index] = {_SIGNATURE: signature, **self._parts[index]}


def _is_kept(part: Any) -> bool:
    if part.thought:
        return False
    call, blob = part.function_call, part.inline_data
    return bool(part.text or (call and call.name) or (blob and blob.data))


def contents_for(request: Request, model: str) -> Any:
    """Return the contents of ``request`` as ``model`` is to be sent them.

    Its own earlier answers get their signatures back, without which it refuses its images and its function
    calls. Answers of other models go without: a signature that is not its own is an error, too. Where Gemini
    demands one all the same, they get the placeholder that Google documents for a change of model: on the
    first function call of each answer since the user last spoke; and, if images are asked for, on the first
    part and on the images of every answer.
    """
    if request.origins is None:
        return request.contents
    contents = [*request.contents]
    current = _current_turn(contents)
    draws = _asks_for_images(request.config)
    for origin in request.origins:
        content = contents[origin.content]
        signatures = _signatures(origin, content["parts"], model, current, draws=draws)
        parts = [
            {**part, _SIGNATURE: signature} if signature is not None and isinstance(part, Mapping) else part
            for part, signature in zip(content["parts"], signatures, strict=True)
        ]
        contents[origin.content] = {**content, "parts": parts}
    return contents


def _signatures(
    origin: Origin, parts: Sequence[Any], model: str, current: int, *, draws: bool
) -> Sequence[bytes | None]:
    """Return the signature that each of the parts of an earlier answer is to be sent with."""
    if origin.model is None or origin.model == model:
        return origin.signatures
    needed = {next(_calls(parts), None)} if origin.content >= current else set()
    if draws:
        needed |= {0, *(index for index, part in enumerate(parts) if _has(part, "inline_data"))}
    return [_PLACEHOLDER if index in needed else None for index in range(len(parts))]


def _calls(parts: Sequence[Any]) -> Iterator[int]:
    return (index for index, part in enumerate(parts) if _has(part, "function_call"))


def _current_turn(contents: Sequence[Any]) -> int:
    """Return the index after the last content in which the user said more than answers to calls."""
    for index in reversed(range(len(contents))):
        parts = _get(contents[index], "parts") or ("",)
        answers = all(_has(part, "function_response") for part in parts)
        if _get(contents[index], "role") != "model" and not answers:
            return index + 1
    return 0


def _asks_for_images(config: Any) -> bool:
    modalities = _get(config, "response_modalities") or _get(config, "responseModalities") or ()
    return any(str(getattr(each, "value", each)).upper() == "IMAGE" for each in modalities)


def _has(part: Any, name: str) -> bool:
    head, _, tail = name.partition("_")
    return bool(_get(part, name) or _get(part, head + tail.title()))


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
