"""The JSON bodies of generated answers in Gemini's own protocol. None contains a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_router.gemini_http.framing import Body, dump, sse_event

if TYPE_CHECKING:
    from llm_router.emulator.answers import Answer, FunctionCall
    from llm_router.gemini_http.api_errors import ApiError

__all__ = ["END", "chunks", "event", "failed", "generated", "prompt_blocked", "without_content"]

END = b""
"""What follows the last event of a stream."""


def generated(answer: Answer) -> Body:
    """Return the answer as one body."""
    return _response(answer, _parts(answer, answer.text), answer.finish_reason, answer.output_tokens)


def chunks(answer: Answer, count: int) -> list[Body]:
    """Return the answer as at most ``count`` chunks of a stream, each with the usage so far.

    Calls come whole in a chunk of their own, before the one with the finish reason.
    """
    reason = answer.finish_reason
    if answer.calls:
        calls = _response(answer, _parts(answer, ""), None, answer.output_tokens)
        return [calls, _response(answer, [{"text": ""}], reason, answer.output_tokens)]
    pieces = answer.pieces(count)
    last = len(pieces) - 1
    return [
        _response(answer, [{"text": text}], reason if index == last else None, tokens)
        for index, (text, tokens) in enumerate(pieces)
    ]


def without_content(answer: Answer, finish_reason: str) -> Body:
    """Return the body of an answer without content; without a finish reason it has no candidates either."""
    body = _response(answer, [], finish_reason, 0)
    if finish_reason:
        del body["candidates"][0]["content"]
    else:
        del body["candidates"]
    return body


def prompt_blocked(answer: Answer, reason: str) -> Body:
    """Return the body for a prompt that was blocked for ``reason``."""
    body = _response(answer, [], None, 0)
    del body["candidates"]
    return {"promptFeedback": {"blockReason": reason}, **body}


def failed(error: ApiError) -> Body:
    """Return ``error`` as it comes in the place of a chunk."""
    return error.body


def event(body: Body) -> bytes:
    """Return a chunk as a server-sent event."""
    return sse_event(dump(body))


def _parts(answer: Answer, text: str) -> list[Body]:
    if not answer.calls:
        return [{"text": text}]
    return [_call_part(call, signed=index == 0) for index, call in enumerate(answer.calls)]


def _call_part(call: FunctionCall, *, signed: bool) -> Body:
    """Return the part of a call; only the first of an answer is signed."""
    part: Body = {"functionCall": {"id": call.call_id, "name": call.name, "args": dict(call.args)}}
    if signed:
        part["thoughtSignature"] = call.signature
    return part


def _response(answer: Answer, parts: list[Body], finish_reason: str | None, output_tokens: int) -> Body:
    candidate: Body = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish_reason is not None:
        candidate["finishReason"] = finish_reason
    return {
        "candidates": [candidate],
        "usageMetadata": _usage(answer, output_tokens),
        "modelVersion": answer.model,
        "responseId": answer.response_id,
    }


def _usage(answer: Answer, output_tokens: int) -> Body:
    usage: Body = {"promptTokenCount": answer.prompt_tokens}
    if output_tokens:
        usage["candidatesTokenCount"] = output_tokens
    usage["totalTokenCount"] = answer.prompt_tokens + output_tokens + answer.thought_tokens
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": answer.prompt_tokens}]
    if answer.thought_tokens:
        usage["thoughtsTokenCount"] = answer.thought_tokens
    if answer.cached_tokens:
        usage["cachedContentTokenCount"] = answer.cached_tokens
    return usage
