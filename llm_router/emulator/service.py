"""The emulated models: they make up answers, within the quotas and with the faults in force."""

from __future__ import annotations

import itertools
from http import HTTPStatus
from typing import TYPE_CHECKING

from llm_router.emulator.answers import Answer
from llm_router.emulator.faults import Fault, FaultKind
from llm_router.emulator.refusals import RefusalError, error_data, error_for
from llm_router.emulator.responding import is_signed
from llm_router.emulator.tokens import BYTES_PER_TOKEN, count_input_tokens, count_text_tokens, utf8
from llm_router.gemini_http.api_errors import no_contents, too_many_tokens
from llm_router.gemini_http.framing import JSON_TYPE, SSE_TYPE, Body, array_item, dump
from llm_router.gemini_http.targets import Operation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llm_router.emulator.admission import Admission
    from llm_router.emulator.answers import FunctionCall
    from llm_router.emulator.caches import CacheService
    from llm_router.emulator.calls import Call, Settings
    from llm_router.emulator.files import FileService

__all__ = ["GeminiService"]


class GeminiService:
    """Generates answers and counts tokens."""

    def __init__(
        self, settings: Settings, admission: Admission, files: FileService, caches: CacheService
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._files = files
        self._caches = caches
        self._ids = itertools.count(1)
        self.operations: dict[Operation, Callable[[Call], Awaitable[None]]] = {
            Operation.GENERATE: self.generate,
            Operation.STREAM: self.generate,
            Operation.COUNT_TOKENS: self._count_tokens,
        }

    async def generate(self, call: Call) -> None:
        """Answer a call whose body is that of ``generateContent``.

        Raises:
            RefusalError: The request is invalid, or refused by a quota or a fault.
        """
        body = call.body
        if not body.get("contents"):
            raise RefusalError.of(no_contents())
        cached = self._caches.tokens_for(call) if "cachedContent" in body else 0
        if b"/files/" in call.raw:
            self._files.require_named(call)
        if "tools" in body and not is_signed(body):
            raise RefusalError.invalid("Corrupted thought signature.")
        tokens = count_input_tokens(body) + cached
        fault = await self._admission.enter(call, tokens)
        if tokens > self._settings.input_token_limit:
            raise RefusalError.of(too_many_tokens(tokens, self._settings.input_token_limit))
        answer = self._answer(call, tokens, cached)
        if fault is not None:
            await self._fail(call, fault, answer)
        elif call.streams:
            await self._stream(call, call.dialect.chunks(answer, self._settings.stream_chunks))
        else:
            await call.exchange.reply_json(200, call.dialect.generated(answer))

    async def _count_tokens(self, call: Call) -> None:
        fault = await self._admission.enter(call, None)
        body = call.body.get("generateContentRequest", call.body)
        total = count_input_tokens(body)
        details = [{"modality": "TEXT", "tokenCount": total}]
        await self._admission.reply(call, fault, {"totalTokens": total, "promptTokensDetails": details})

    # ---------------------------------------------------------------- faults

    async def _fail(self, call: Call, fault: Fault, answer: Answer) -> None:
        """Send an answer with a fault in it."""
        match fault.kind:
            case FaultKind.BLOCK:
                await self._whole(call, call.dialect.prompt_blocked(answer, fault.reason))
            case FaultKind.SAFETY:
                await self._whole(call, call.dialect.without_content(answer, "SAFETY"))
            case FaultKind.NO_CONTENT:
                await self._whole(call, call.dialect.without_content(answer, fault.reason))
            case FaultKind.EMPTY:
                await call.exchange.reply(200, b"", SSE_TYPE if call.sse else JSON_TYPE)
            case FaultKind.CUT_JSON:
                await self._cut(call, fault, answer)
            case _:
                await self._break(call, fault, call.dialect.chunks(answer, self._settings.stream_chunks))

    async def _break(self, call: Call, fault: Fault, chunks: Sequence[Body]) -> None:
        """Stream an answer that goes wrong partway."""
        after = min(fault.after, len(chunks) - 1)
        match fault.kind:
            case FaultKind.STREAM_CUT:
                await self._stream(call, chunks[:after], end=b"")
            case FaultKind.STREAM_ERROR:
                error = call.dialect.failed(error_for(fault.code, call.model))
                await self._stream(call, [*chunks[:after], error], end=b"")
            case FaultKind.STREAM_DROP:
                await self._stream(call, chunks, interrupt=call.exchange.drop, at=after)
            case _:
                await self._stream(call, chunks, interrupt=lambda: call.exchange.pause(None), at=after)

    async def _whole(self, call: Call, body: Body) -> None:
        if call.streams:
            await self._stream(call, [body])
        else:
            await call.exchange.reply_json(200, body)

    async def _cut(self, call: Call, fault: Fault, answer: Answer) -> None:
        proper = fault.code == HTTPStatus.OK
        if proper:
            data = dump(call.dialect.generated(answer))
        else:
            data = error_data(error_for(fault.code, call.model), openai=call.openai)
        half = data[: len(data) // 2]
        if call.sse and proper:
            await call.exchange.reply(200, b"data: " + half, SSE_TYPE)
        else:
            await call.exchange.reply(fault.code, half)

    # --------------------------------------------------------------- answers

    def _answer(self, call: Call, tokens: int, cached: int) -> Answer:
        made, reason = self._settings.responder(call.model, call.body), "STOP"
        text, calls = (made, ()) if isinstance(made, str) else ("", tuple(made))
        limit = (call.body.get("generationConfig") or {}).get("maxOutputTokens")
        if limit and count_text_tokens(text) > limit:
            text = utf8(text)[: limit * BYTES_PER_TOKEN].decode(errors="ignore")
            reason = "MAX_TOKENS"
        return Answer(
            model=call.model,
            response_id=f"emulated-{next(self._ids)}",
            text=text,
            finish_reason=reason,
            prompt_tokens=tokens,
            output_tokens=count_text_tokens(text) if not calls else sum(map(_call_tokens, calls)),
            thought_tokens=self._settings.thought_tokens,
            cached_tokens=cached,
            calls=calls,
        )

    async def _stream(
        self,
        call: Call,
        bodies: Sequence[Body],
        *,
        interrupt: Callable[[], Awaitable[None]] | None = None,
        at: int = 0,
        end: bytes | None = None,
    ) -> None:
        """Send ``bodies`` as events or as one JSON array; await ``interrupt`` before number ``at``.

        After events comes ``end``, or what ends a stream in the protocol of the call if that is None.
        """
        exchange, last, event = call.exchange, len(bodies) - 1, call.dialect.event
        await exchange.start(SSE_TYPE if call.sse else JSON_TYPE)
        for index, body in enumerate(bodies):
            if interrupt is not None and index == at:
                await interrupt()
            await exchange.write(event(body) if call.sse else array_item(dump(body), index, last))
        await exchange.end(call.dialect.END if end is None else end)


def _call_tokens(call: FunctionCall) -> int:
    return count_text_tokens(f"{call.name}{dump(dict(call.args)).decode()}")
