"""Chat completions as requests to generate: from OpenAI's messages to Gemini's contents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llm_router.emulator.refusals import RefusalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_router.gemini_http.framing import Body

__all__ = ["generate_body"]


def generate_body(chat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of ``generateContent`` that stands for ``chat``, the body of a chat completion.

    Raises:
        RefusalError: ``chat`` has no messages, or something in them is not as OpenAI's protocol has it.
    """
    try:
        body = _body(chat)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RefusalError.invalid("Request contains an invalid argument.") from None
    if not body["contents"]:
        raise RefusalError.invalid("* GenerateContentRequest.contents: contents is not specified\n")
    return body


def _body(chat: Mapping[str, Any]) -> dict[str, Any]:
    messages = chat.get("messages") or []
    names = {call["id"]: call["function"]["name"] for call in _calls(messages)}
    instructions = [_parts(one["content"]) for one in messages if one["role"] in ("system", "developer")]
    body: dict[str, Any] = {
        "contents": [
            {"role": "model" if one["role"] == "assistant" else "user", "parts": _message_parts(one, names)}
            for one in messages
            if one["role"] not in ("system", "developer")
        ],
        "generationConfig": _config(chat),
    }
    if instructions:
        body["systemInstruction"] = {"parts": [part for parts in instructions for part in parts]}
    cached = (chat.get("extra_body", chat).get("google") or {}).get("cached_content")
    if cached:
        body["cachedContent"] = cached
    return body | _tools(chat)


def _calls(messages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [call for message in messages for call in message.get("tool_calls") or ()]


def _message_parts(message: Mapping[str, Any], names: Mapping[str, str]) -> list[Body]:
    if message["role"] == "tool":
        content, call_id = message["content"], message["tool_call_id"]
        response = {"id": call_id, "name": names[call_id], "response": _result(_text(content))}
        return [{"functionResponse": response}]
    return _parts(message.get("content")) + [_call_part(call) for call in message.get("tool_calls") or ()]


def _call_part(call: Mapping[str, Any]) -> Body:
    function = call["function"]
    args = json.loads(function["arguments"] or "{}")
    part: Body = {"functionCall": {"id": call["id"], "name": function["name"], "args": args}}
    signature = ((call.get("extra_content") or {}).get("google") or {}).get("thought_signature")
    return part | ({"thoughtSignature": signature} if signature else {})


def _parts(content: str | list[Mapping[str, Any]] | None) -> list[Body]:
    if not content:
        return []
    return [{"text": content}] if isinstance(content, str) else [_part(one) for one in content]


def _part(one: Mapping[str, Any]) -> Body:
    if one["type"] == "text":
        return {"text": one["text"]}
    if one["type"] == "image_url":
        url = one["image_url"]["url"]
        kind, _, data = url.removeprefix("data:").partition(";base64,")
        if data:
            return {"inlineData": {"mimeType": kind, "data": data}}
        return {"fileData": {"fileUri": url}}
    if one["type"] == "input_audio":
        audio = one["input_audio"]
        return {"inlineData": {"mimeType": f"audio/{audio['format']}", "data": audio["data"]}}
    raise ValueError(one["type"])


def _text(content: str | list[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _result(text: str) -> Any:
    """Return the result of a function: an object as it is, anything else in one."""
    try:
        result = json.loads(text)
    except ValueError:
        result = text
    return result if isinstance(result, dict) else {"result": result}


def _config(chat: Mapping[str, Any]) -> Body:
    config: Body = {}
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if limit:
        config["maxOutputTokens"] = int(limit)
    wanted = chat.get("response_format") or {"type": "text"}
    if wanted["type"] != "text":
        config["responseMimeType"] = "application/json"
    if wanted["type"] == "json_schema":
        config["responseJsonSchema"] = wanted["json_schema"].get("schema") or {}
    return config


def _tools(chat: Mapping[str, Any]) -> Body:
    functions = [tool["function"] for tool in chat.get("tools") or ()]
    if not functions:
        return {}
    choice = chat.get("tool_choice") or "auto"
    modes = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
    calling = {"mode": modes[choice]} if isinstance(choice, str) else _one_function(choice)
    return {
        "tools": [{"functionDeclarations": functions}],
        "toolConfig": {"functionCallingConfig": calling},
    }


def _one_function(choice: Mapping[str, Any]) -> Body:
    return {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
