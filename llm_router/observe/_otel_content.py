"""Write prompts and answers as the messages of the GenAI semantic conventions, for those who ask for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_router.domain.response import Response

__all__ = ["input_messages", "output_messages", "system_instructions"]

_ROLES = {"model": "assistant"}


def input_messages(contents: Any) -> str:
    """Return the contents of a request as JSON: texts, and of other parts only the kind."""
    messages: list[dict[str, object]] = []
    for role, parts in _said(contents):
        if messages and messages[-1]["role"] == role and role == "user":
            messages[-1]["parts"] = [*_listed(messages[-1]["parts"]), *parts]
        else:
            messages.append({"role": role, "parts": parts})
    return _json(messages)


def system_instructions(instruction: Any) -> str:
    """Return a system instruction as JSON."""
    return _json([part for _, parts in _said(instruction) for part in parts])


def output_messages(response: Response) -> str:
    """Return the text of an answer as JSON."""
    message = {
        "role": "assistant",
        "parts": [_text(response.answer)],
        "finish_reason": response.finish_reason,
    }
    return _json([message])


def _said(contents: Any) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Yield the role and the parts of each content; what has no role was said by the user."""
    for content in _listed(contents):
        parts = _field(content, "parts")
        if parts is None:
            yield "user", [_part(content)]
        else:
            role = str(_field(content, "role") or "user")
            yield _ROLES.get(role, role), [_part(part) for part in _listed(parts)]


def _part(part: Any) -> dict[str, object]:
    text = part if isinstance(part, str) else _field(part, "text")
    if isinstance(text, str):
        return _text(text)
    for kind in ("function_call", "function_response", "inline_data", "file_data"):
        if _field(part, kind) is not None:
            return {"type": kind}
    return {"type": type(part).__name__}


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "content": text}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
