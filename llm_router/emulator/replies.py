"""The JSON bodies of the emulator's answers, shaped like those of the real API. None contains a key."""

from __future__ import annotations

import hashlib
import math

import attrs

from llm_router.gemini_http.framing import Body
from llm_router.gemini_http.routes import Method

__all__ = [
    "Answer",
    "chunks",
    "embedding",
    "generated",
    "model_resource",
    "prompt_blocked",
    "without_content",
]


@attrs.frozen
class Answer:
    """An answer of a model, with its usage.

    Attributes:
        model: The name of the model.
        response_id: The id of the answer.
        text: The whole text.
        finish_reason: Why the text ends.
        prompt_tokens: Tokens of the prompt.
        output_tokens: Tokens of ``text``.
        thought_tokens: Tokens of the thoughts before it.
    """

    model: str
    response_id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    thought_tokens: int = 0


def generated(answer: Answer) -> Body:
    """Return the answer as one body."""
    return _response(answer, answer.text, answer.finish_reason, answer.output_tokens)


def chunks(answer: Answer, count: int) -> list[Body]:
    """Return the answer as at most ``count`` chunks of a stream, each with the usage so far."""
    size = max(1, math.ceil(len(answer.text) / count))
    pieces = [answer.text[start : start + size] for start in range(0, len(answer.text), size)] or [""]
    last = len(pieces) - 1
    return [
        _response(
            answer,
            piece,
            answer.finish_reason if index == last else None,
            answer.output_tokens if index == last else answer.output_tokens * (index + 1) // len(pieces),
        )
        for index, piece in enumerate(pieces)
    ]


def without_content(answer: Answer, finish_reason: str) -> Body:
    """Return the body of an answer without content; without a finish reason it has no candidates either."""
    body = _response(answer, "", finish_reason, 0)
    if finish_reason:
        del body["candidates"][0]["content"]
    else:
        del body["candidates"]
    return body


def prompt_blocked(answer: Answer, reason: str) -> Body:
    """Return the body for a prompt that was blocked for ``reason``."""
    body = _response(answer, "", None, 0)
    del body["candidates"]
    return {"promptFeedback": {"blockReason": reason}, **body}


def _response(answer: Answer, text: str, finish_reason: str | None, output_tokens: int) -> Body:
    candidate: Body = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
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
    return usage


def embedding(text: str, dimensions: int) -> Body:
    """Return a vector of length 1 that depends only on ``text``."""
    digest = hashlib.shake_128(text.encode()).digest(dimensions)
    values = [byte / 127.5 - 1.0 for byte in digest]
    norm = math.sqrt(sum(value * value for value in values))
    return {"values": [round(value / norm, 7) for value in values]}


def model_resource(model: str, token_limit: int) -> Body:
    """Return the description of a model."""
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model,
        "description": "An emulated model.",
        "inputTokenLimit": token_limit,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": [Method.GENERATE, Method.STREAM, Method.COUNT_TOKENS, Method.EMBED],
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
    }
