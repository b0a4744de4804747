"""The emulated models: they check quotas, show faults and make up answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

from llm_router.emulator import replies
from llm_router.emulator.faults import Fault, FaultKind
from llm_router.emulator.refusals import BARE_429, RefusalError, error_for, over_quota
from llm_router.emulator.tokens import (
    BYTES_PER_TOKEN,
    count_input_tokens,
    count_text_tokens,
    last_prompt,
)
from llm_router.gemini_http.api_errors import no_contents, not_json, too_many_tokens
from llm_router.gemini_http.framing import JSON_TYPE, SSE_TYPE, Body, array_item, dump, sse_event
from llm_router.gemini_http.routes import Method

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from llm_router.domain.clock import Clock
    from llm_router.emulator.exchange import Exchange
    from llm_router.emulator.faults import FaultRules
    from llm_router.emulator.quota import EmulatedQuotas

__all__ = ["Call", "GeminiService", "Responder", "Settings", "echo"]

Responder = Callable[[str, Mapping[str, Any]], str]
"""Makes the text of an answer, given the model's name and the JSON body of the request."""

_ECHOED = 200
_EMBEDDING_DIMENSIONS = 768


def echo(model: str, body: Mapping[str, Any]) -> str:
    """Answer with the model's name and the beginning of the last prompt: the default responder."""
    return f"[{model}] echo: {last_prompt(body)[:_ECHOED]}"


@attrs.frozen
class Settings:
    """How the emulated models behave.

    Attributes:
        models: The models that exist; None is any.
        input_token_limit: Tokens of the largest prompt.
        thought_tokens: Thought tokens reported with each answer.
        stream_chunks: The most chunks in which an answer is streamed.
        responder: Makes the text of each answer.
    """

    models: tuple[str, ...] | None = None
    input_token_limit: int = 1_048_576
    thought_tokens: int = 0
    stream_chunks: int = 4
    responder: Responder = echo


@attrs.frozen
class Call:
    """A parsed request, with the HTTP exchange to answer it on."""

    exchange: Exchange
    model: str
    method: str
    sse: bool
    project: str
    key: str = attrs.field(repr=False)
    body: dict[str, Any] = attrs.field(repr=False)

    @property
    def streams(self) -> bool:
        """Whether the answer is to be streamed."""
        return self.method == Method.STREAM


class GeminiService:
    """Answers calls, within the quotas and with the faults in force."""

    def __init__(self, settings: Settings, quotas: EmulatedQuotas, faults: FaultRules, clock: Clock) -> None:
        self._settings = settings
        self._quotas = quotas
        self._faults = faults
        self._clock = clock
        self._ids = itertools.count(1)
        self.methods: dict[str, Callable[[Call], Awaitable[None]]] = {
            Method.GENERATE: self._generate,
            Method.STREAM: self._generate,
            Method.COUNT_TOKENS: self._count_tokens,
            Method.EMBED: self._embed_one,
            Method.BATCH_EMBED: self._embed_batch,
        }

    async def _generate(self, call: Call) -> None:
        if not call.body.get("contents"):
            raise RefusalError.of(no_contents())
        tokens = count_input_tokens(call.body)
        fault = await self._enter(call, tokens)
        if tokens > self._settings.input_token_limit:
            raise RefusalError.of(too_many_tokens(tokens, self._settings.input_token_limit))
        answer = self._answer(call, tokens)
        if fault is not None:
            await self._fail(call, fault, answer)
        elif call.streams:
            await self._stream(call, replies.chunks(answer, self._settings.stream_chunks))
        else:
            await call.exchange.reply_json(200, replies.generated(answer))

    async def _count_tokens(self, call: Call) -> None:
        await self._enter(call, None)
        body = call.body.get("generateContentRequest", call.body)
        total = count_input_tokens(body)
        details = [{"modality": "TEXT", "tokenCount": total}]
        await call.exchange.reply_json(200, {"totalTokens": total, "promptTokensDetails": details})

    async def _embed_one(self, call: Call) -> None:
        (embedding,) = await self._embed(call, [call.body])
        await call.exchange.reply_json(200, {"embedding": embedding})

    async def _embed_batch(self, call: Call) -> None:
        requests = call.body.get("requests")
        if not isinstance(requests, list) or not all(isinstance(request, dict) for request in requests):
            raise RefusalError.of(not_json())
        embeddings = await self._embed(call, requests)
        await call.exchange.reply_json(200, {"embeddings": embeddings})

    async def _embed(self, call: Call, requests: Sequence[Mapping[str, Any]]) -> list[Body]:
        bodies = [{"contents": [request.get("content", {})]} for request in requests]
        await self._enter(call, sum(map(count_input_tokens, bodies)))
        return [
            replies.embedding(last_prompt(body), request.get("outputDimensionality") or _EMBEDDING_DIMENSIONS)
            for body, request in zip(bodies, requests, strict=True)
        ]

    # ------------------------------------------------------ quotas and faults

    async def _enter(self, call: Call, tokens: int | None) -> Fault | None:
        """Count a call on arrival, or refuse it; return its fault. With ``tokens`` None it uses no quota."""
        rule = self._faults.match(call.model, call.key, call.method)
        if rule is not None and not rule.fault.counted:
            if rule.fault.code == HTTPStatus.TOO_MANY_REQUESTS and tokens is not None:
                self._quotas.refuse(call.project, call.model, tokens, self._clock.time())
            return await self._show(call, rule.take())
        if tokens is not None:
            now = self._clock.time()
            violations = self._quotas.admit(call.project, call.model, tokens, now)
            if violations:
                raise RefusalError.of(over_quota(call.model, violations, now))
        return await self._show(call, rule.take()) if rule is not None else None

    async def _show(self, call: Call, fault: Fault) -> Fault | None:
        """Show a fault that needs no answer from the model, or return the fault."""
        if fault.seconds:
            await call.exchange.pause(fault.seconds)
        match fault.kind:
            case FaultKind.DELAY:
                return None
            case FaultKind.HANG:
                await call.exchange.pause(None)
                return None
            case FaultKind.DROP:
                await call.exchange.drop()
            case FaultKind.STATUS:
                raise RefusalError(fault.code, _body_of(fault, call.model), fault.headers)
            case FaultKind.BARE_429:
                raise RefusalError.of(BARE_429)
            case FaultKind.LIST_429:
                raise RefusalError(fault.code, dump([error_for(fault.code, call.model).body]))
        return fault

    async def _fail(self, call: Call, fault: Fault, answer: replies.Answer) -> None:
        """Send an answer with a fault in it."""
        match fault.kind:
            case FaultKind.BLOCK:
                await self._whole(call, replies.prompt_blocked(answer, fault.reason))
            case FaultKind.SAFETY:
                await self._whole(call, replies.without_content(answer, "SAFETY"))
            case FaultKind.NO_CONTENT:
                await self._whole(call, replies.without_content(answer, fault.reason))
            case FaultKind.EMPTY:
                await call.exchange.reply(200, b"", SSE_TYPE if call.sse else JSON_TYPE)
            case FaultKind.CUT_JSON:
                await self._cut(call, fault, answer)
            case _:
                await self._break(call, fault, replies.chunks(answer, self._settings.stream_chunks))

    async def _break(self, call: Call, fault: Fault, chunks: Sequence[Body]) -> None:
        """Stream an answer that goes wrong partway."""
        after = min(fault.after, len(chunks) - 1)
        match fault.kind:
            case FaultKind.STREAM_CUT:
                await self._stream(call, chunks[:after])
            case FaultKind.STREAM_ERROR:
                await self._stream(call, [*chunks[:after], error_for(fault.code, call.model).body])
            case FaultKind.STREAM_DROP:
                await self._stream(call, chunks, interrupt=call.exchange.drop, at=after)
            case _:
                await self._stream(call, chunks, interrupt=lambda: call.exchange.pause(None), at=after)

    async def _whole(self, call: Call, body: Body) -> None:
        if call.streams:
            await self._stream(call, [body])
        else:
            await call.exchange.reply_json(200, body)

    async def _cut(self, call: Call, fault: Fault, answer: replies.Answer) -> None:
        proper = fault.code == HTTPStatus.OK
        body = replies.generated(answer) if proper else error_for(fault.code, call.model).body
        data = dump(body)
        half = data[: len(data) // 2]
        if call.sse and proper:
            await call.exchange.reply(200, b"data: " + half, SSE_TYPE)
        else:
            await call.exchange.reply(fault.code, half)

    # --------------------------------------------------------------- answers

    def _answer(self, call: Call, tokens: int) -> replies.Answer:
        text, reason = self._settings.responder(call.model, call.body), "STOP"
        limit = (call.body.get("generationConfig") or {}).get("maxOutputTokens")
        if limit and count_text_tokens(text) > limit:
            text = text.encode()[: limit * BYTES_PER_TOKEN].decode(errors="ignore")
            reason = "MAX_TOKENS"
        return replies.Answer(
            model=call.model,
            response_id=f"emulated-{next(self._ids)}",
            text=text,
            finish_reason=reason,
            prompt_tokens=tokens,
            output_tokens=count_text_tokens(text),
            thought_tokens=self._settings.thought_tokens,
        )

    async def _stream(
        self,
        call: Call,
        bodies: Sequence[Body],
        *,
        interrupt: Callable[[], Awaitable[None]] | None = None,
        at: int = 0,
    ) -> None:
        """Send ``bodies`` as events or as one JSON array; await ``interrupt`` before number ``at``."""
        exchange, last = call.exchange, len(bodies) - 1
        await exchange.start(SSE_TYPE if call.sse else JSON_TYPE)
        for index, body in enumerate(bodies):
            if interrupt is not None and index == at:
                await interrupt()
            data = dump(body)
            await exchange.write(sse_event(data) if call.sse else array_item(data, index, last))
        await exchange.end()


def _body_of(fault: Fault, model: str) -> bytes:
    return dump(error_for(fault.code, model).body) if fault.body is None else fault.body
