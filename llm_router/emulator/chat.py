"""Chat completions: OpenAI's protocol as Google serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from llm_router.emulator.calls import parsed
from llm_router.emulator.chat_requests import generate_body
from llm_router.emulator.refusals import RefusalError
from llm_router.gemini_http.framing import Body, dump
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_router.domain.clock import Clock
    from llm_router.emulator.answers import Answer, FunctionCall
    from llm_router.emulator.calls import Call
    from llm_router.emulator.models import ModelService
    from llm_router.emulator.service import GeminiService
    from llm_router.gemini_http.api_errors import ApiError

__all__ = ["ChatService"]

_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}


class ChatService:
    """Answers chat completions as the models answer requests to generate."""

    def __init__(self, service: GeminiService, models: ModelService, clock: Clock) -> None:
        self._service = service
        self._models = models
        self._clock = clock
        self.operations: dict[Operation, Callable[[Call], Awaitable[None]]] = {Operation.CHAT: self._complete}

    async def _complete(self, call: Call) -> None:
        chat = parsed(call.raw)
        model = str(chat.get("model") or "").removeprefix("models/")
        if not model:
            raise RefusalError.invalid("model is not specified")
        self._models.require(model, "v1main", Operation.GENERATE)
        streams = bool(chat.get("stream"))
        usage = bool((chat.get("stream_options") or {}).get("include_usage"))
        replies = _ChatReplies(int(self._clock.time()), usage)
        body = generate_body(chat)
        await self._service.generate(
            attrs.evolve(call, model=model, body=body, streams=streams, sse=streams, dialect=replies)
        )


@attrs.frozen
class _ChatReplies:
    """Generated answers as chat completions.

    Attributes:
        created: The time of the answer, in whole seconds.
        include_usage: Whether each chunk has the usage so far; Google sends running totals.
    """

    created: int
    include_usage: bool
    END: bytes = b"data: [DONE]\n\n"

    def generated(self, answer: Answer) -> Body:
        message: Body = {"role": "assistant"}
        if answer.calls:
            message["tool_calls"] = _tool_calls(answer.calls)
        else:
            message["content"] = answer.text
        choice = {"index": 0, "message": message, "finish_reason": _reason(answer)}
        usage = _usage(answer, answer.output_tokens)
        return self._body(answer, "chat.completion", [choice]) | {"usage": usage}

    def chunks(self, answer: Answer, count: int) -> list[Body]:
        if answer.calls:
            calls = {"role": "assistant", "tool_calls": _tool_calls(answer.calls)}
            tokens = answer.output_tokens
            return [
                self._chunk(answer, calls, None, tokens),
                self._chunk(answer, {"role": "assistant"}, _reason(answer), tokens),
            ]
        pieces = answer.pieces(count)
        last = len(pieces) - 1
        return [
            self._chunk(
                answer,
                {"role": "assistant", "content": text},
                _reason(answer) if index == last else None,
                tokens,
            )
            for index, (text, tokens) in enumerate(pieces)
        ]

    def without_content(self, answer: Answer, finish_reason: str) -> Body:
        reason = _REASONS.get(finish_reason, "content_filter") if finish_reason else None
        return self._empty(answer, reason)

    def prompt_blocked(self, answer: Answer, reason: str) -> Body:  # noqa: ARG002 - the protocol has no place
        return self._empty(answer, "content_filter")

    def failed(self, error: ApiError) -> Body:
        return error.body

    def event(self, body: Body) -> bytes:
        return b"data: " + dump(body) + b"\n\n"

    def _empty(self, answer: Answer, reason: str | None) -> Body:
        """Return an answer without content, which reads as a whole and as a chunk."""
        role = {"role": "assistant"}
        choice = {"index": 0, "message": role, "delta": role, "finish_reason": reason}
        body = self._body(answer, "chat.completion", [choice] if reason else [])
        return body | {"usage": _usage(answer, 0)}

    def _chunk(self, answer: Answer, delta: Body, reason: str | None, tokens: int) -> Body:
        choice: Body = {"index": 0, "delta": delta} | ({"finish_reason": reason} if reason else {})
        usage = {"usage": _usage(answer, tokens)} if self.include_usage else {}
        return self._body(answer, "chat.completion.chunk", [choice]) | usage

    def _body(self, answer: Answer, kind: str, choices: list[Body]) -> Body:
        return {
            "id": answer.response_id,
            "object": kind,
            "created": self.created,
            "model": answer.model,
            "choices": choices,
        }


def _reason(answer: Answer) -> str:
    return "tool_calls" if answer.calls else _REASONS[answer.finish_reason]


def _tool_calls(calls: tuple[FunctionCall, ...]) -> list[Body]:
    """Return calls as Google sends them, without an ``index``; the first has the thought signature."""
    found: list[Body] = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": dump(dict(call.args)).decode()},
        }
        for call in calls
    ]
    found[0]["extra_content"] = {"google": {"thought_signature": calls[0].signature}}
    return found


def _usage(answer: Answer, output_tokens: int) -> Body:
    spent = output_tokens + answer.thought_tokens
    usage: Body = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": answer.prompt_tokens + spent,
    }
    if answer.cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": answer.cached_tokens}
    return usage
