"""What the emulated models answer: the default responder, and the function calls it makes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_router.emulator.answers import FunctionCall
from llm_router.emulator.schemas import example
from llm_router.emulator.tokens import last_prompt, parts_of, turns

__all__ = ["Responder", "echo", "is_signed"]

Responder = Callable[[str, Mapping[str, Any]], str | Sequence[FunctionCall]]
"""Makes the text of an answer, or the function calls in its place.

It is given the model's name and the JSON body of the request, as ``generateContent`` has it.
"""

_ECHOED = 200
_PARAMETERS = ("parameters", "parametersJsonSchema", "parameters_json_schema")  # as clients write it
_CALL = re.compile(r"call:([A-Za-z_][\w.-]*)")
_JSON = "application/json"


def echo(model: str, body: Mapping[str, Any]) -> str | Sequence[FunctionCall]:
    """Answer with the model's name and the beginning of the last prompt: the default responder.

    A prompt with ``call:NAME{"json": "arguments"}`` is answered with that call if the request declares NAME.
    If the request demands a call, one that was not made yet is made, with arguments that fit its schema.
    The results of functions are echoed as JSON. If the request demands JSON, the answer fits its schema.
    """
    results: list[Any] = []
    if "tools" in body:
        results = [part["functionResponse"] for part in _last_parts(body) if "functionResponse" in part]
        calls = _calls(body, answered=bool(results))
        if calls:
            return calls
    config = body.get("generationConfig")
    if config and (kind := config.get("responseMimeType", "text/plain")) != "text/plain":
        return _structured(config, kind, last_prompt(body))
    prompt = last_prompt(body) or (json.dumps([one.get("response") for one in results]) if results else "")
    return f"[{model}] echo: {prompt[:_ECHOED]}"


def is_signed(body: Mapping[str, Any]) -> bool:
    """Return whether each thought signature that the emulator made is at the call it was made for."""
    for turn in turns(body):
        for part in parts_of(turn):
            call, signature = part.get("functionCall"), part.get("thoughtSignature")
            if isinstance(call, dict) and signature:
                made = FunctionCall(str(call.get("name")), call.get("args") or {})
                if not made.is_signed_by(str(signature).replace("-", "+").replace("_", "/")):
                    return False
    return True


def _structured(config: Mapping[str, Any], kind: str, prompt: str) -> str:
    schema = config.get("responseSchema") or config.get("responseJsonSchema") or {}
    if kind != _JSON:
        return str(example(schema))  # text/x.enum
    return json.dumps(example(schema) if schema else {"echo": prompt[:_ECHOED]})


def _calls(body: Mapping[str, Any], *, answered: bool) -> tuple[FunctionCall, ...]:
    mode, allowed = _calling(body)
    declared = {name: one for name, one in _declared(body).items() if not allowed or name in allowed}
    if mode == "NONE" or not declared:
        return ()
    asked = () if answered else tuple(call for call in _asked(last_prompt(body)) if call.name in declared)
    if asked or mode != "ANY":
        return asked
    made = {part["functionCall"].get("name") for turn in turns(body) for part in _call_parts(turn)}
    name = next((name for name in declared if name not in made), list(declared)[-1])
    schemas = (declared[name].get(word) for word in _PARAMETERS)
    schema: Mapping[str, Any] = next(filter(None, schemas), {})
    return (FunctionCall(name, example(schema) if schema else {}),)


def _calling(body: Mapping[str, Any]) -> tuple[str, Sequence[str]]:
    """Return the mode of function calling, and the only functions it allows."""
    config = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    return config.get("mode", "AUTO"), config.get("allowedFunctionNames") or ()


def _declared(body: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    tools = body["tools"]
    found = [tool.get("functionDeclarations") or () for tool in tools if isinstance(tool, dict)]
    return {one["name"]: one for declarations in found for one in declarations}


def _asked(prompt: str) -> list[FunctionCall]:
    """Return the calls that ``prompt`` asks for; without JSON that can be read, a call has no arguments."""
    calls = []
    for found in _CALL.finditer(prompt):
        try:
            args, _ = json.JSONDecoder().raw_decode(prompt, found.end())
        except ValueError:
            args = {}
        calls.append(FunctionCall(found[1], args if isinstance(args, dict) else {}))
    return calls


def _last_parts(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    all_turns = turns(body)
    return parts_of(all_turns[-1]) if all_turns else []


def _call_parts(turn: object) -> list[dict[str, Any]]:
    return [part for part in parts_of(turn) if isinstance(part.get("functionCall"), dict)]
