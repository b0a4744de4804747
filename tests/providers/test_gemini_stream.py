"""The Gemini adapter streaming, against servers on loopback, on both HTTP backends of the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from google.genai import types

from llm_router import Deployment, Reply
from llm_router.domain.request import Request
from llm_router.emulator import Fault
from llm_router.errors import ProviderError
from llm_router.providers._gemini_sse import EventContent, event_bytes
from llm_router.providers.base import FailureKind, StreamingProvider
from llm_router.providers.gemini import GeminiProvider
from llm_router.testing import GeminiEmulator

if TYPE_CHECKING:
    from tests.providers.conftest import ScriptedServer


HELLO = Request(contents="Hello?")


async def read(provider: GeminiProvider, deployment: Deployment, request: Request = HELLO) -> list[Reply]:
    async with aclosing(provider.stream(deployment, request, lambda: None)) as replies:
        return [reply async for reply in replies]


async def failure_after(count: int, provider: GeminiProvider, deployment: Deployment) -> ProviderError:
    """Read ``count`` pieces, and return the error that follows."""
    async with aclosing(provider.stream(deployment, HELLO, lambda: None)) as replies:
        for _ in range(count):
            await anext(replies)
        with pytest.raises(ProviderError) as caught:
            await anext(replies)
    return caught.value


def events(*bodies: Any, ending: bytes = b"\r\n\r\n") -> bytes:
    return b"".join(b"data: " + body + ending for body in bodies)


async def test_an_answer_in_pieces(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """The texts make up the answer; usage, finish reason and content are those of the whole so far."""
    provider = open_provider(emulator.url)
    assert isinstance(provider, StreamingProvider)
    pieces = await read(provider, deployment)
    whole = await provider.generate(deployment, HELLO)
    assert len(pieces) == 4
    assert "".join(piece.text for piece in pieces) == whole.text
    last = pieces[-1]
    assert (last.finish_reason, last.usage, last.content) == ("STOP", whole.usage, whole.content)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * 3
    assert all(piece.model == "gemini-test" for piece in pieces)
    counts = [piece.usage.output_tokens for piece in pieces if piece.usage is not None]
    assert len(counts) == len(pieces)
    assert counts == sorted(counts)
    assert all(isinstance(piece.raw, types.GenerateContentResponse) for piece in pieces)
    assert emulator.accepted == 2


async def test_nothing_is_sent_before_the_first_piece_is_asked_for(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """Asking for the first piece sends one request, which reports when it is on the wire."""
    dispatched = []
    provider = open_provider(emulator.url)
    replies = provider.stream(deployment, HELLO, lambda: dispatched.append(True))
    await asyncio.sleep(0.01)
    assert (emulator.accepted, dispatched) == (0, [])
    await anext(replies)
    assert (emulator.accepted, dispatched) == (1, [True])
    await replies.aclose()


async def test_parts_come_together(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """Texts are joined, calls keep their signature, thoughts are left out, and the last usage applies."""
    scripted.reply = make_http(
        200,
        events(
            b'{"candidates": [{"content": {"parts": [{"text": "hm", "thought": true}]}}],'
            b' "usageMetadata": {"promptTokenCount": 7}}',
            b'{"candidates": [{"content": {"parts": [{"text": "Hel"}]}}]}',
            b'{"candidates": [{"content": {"parts": [{"text": "lo"}, {"functionCall": {"name": "f"},'
            b' "thoughtSignature": "c2ln"}]}}]}',
            b'{"candidates": [{"finishReason": "STOP"}], "modelVersion": "gemini-x"}',
            b'{"usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3}}',
        ),
    )
    *_, before, last = await read(open_provider(scripted.url), deployment)
    assert (before.finish_reason, last.finish_reason, last.model, last.text) == (
        "STOP",
        "STOP",
        "gemini-x",
        "",
    )
    text, call = last.content["parts"]
    assert text == {"text": "Hello"}
    assert call["function_call"]["name"] == "f"
    assert call["thought_signature"] == b"sig"
    assert before.usage is not None
    assert last.usage is not None
    assert (before.usage.input_tokens, before.usage.output_tokens) == (7, 0)
    assert (last.usage.input_tokens, last.usage.output_tokens) == (7, 3)


@pytest.mark.parametrize("after", [0, 2])
async def test_an_answer_that_is_cut_is_an_error(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment, after: int
) -> None:
    """A stream that ends cleanly but without a finish reason has broken off."""
    emulator.inject(Fault.stream_cut(after))
    error = await failure_after(after, open_provider(emulator.url), deployment)
    assert (error.kind, error.charged) == (FailureKind.NETWORK, True)
    assert "broke off" in str(error)


@pytest.mark.parametrize("after", [0, 2])
async def test_a_connection_that_breaks_is_an_error(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
    after: int,
) -> None:
    """A connection that breaks is a failure of the path, and charged."""
    emulator.inject(Fault.stream_drop(after))
    error = await failure_after(after, open_provider(emulator.url), deployment)
    assert (error.kind, error.charged) == (FailureKind.NETWORK, True)
    assert_no_secret(error)


@pytest.mark.parametrize(("code", "kind"), [(503, FailureKind.SERVER), (429, FailureKind.QUOTA)])
@pytest.mark.parametrize("after", [0, 2])
async def test_an_error_in_place_of_a_piece(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
    after: int,
    code: int,
    kind: FailureKind,
) -> None:
    """It has the kind of its status, but is charged, since the request was accepted."""
    emulator.inject(Fault.stream_error(code, after))
    error = await failure_after(after, open_provider(emulator.url), deployment)
    assert (error.kind, error.code, error.charged) == (kind, code, True)
    assert_no_secret(error)


async def test_a_refusal_is_that_of_generate(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    assert_no_secret: Callable[..., None],
) -> None:
    """A refusal comes before the first piece, and a 429 is not charged."""
    emulator.inject(Fault.bare_429())
    error = await failure_after(0, open_provider(emulator.url), deployment)
    assert (error.kind, error.code, error.charged) == (FailureKind.QUOTA, 429, False)
    assert_no_secret(error)


async def test_a_key_that_is_not_valid(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    assert_no_secret: Callable[..., None],
    secret: str,
) -> None:
    """A refusal that quotes the key is reported without it."""
    body = {"error": {"code": 400, "message": f"API key not valid: {secret}", "status": "INVALID_ARGUMENT"}}
    scripted.reply = make_http(400, body)
    error = await failure_after(0, open_provider(scripted.url), deployment)
    assert error.kind is FailureKind.KEY
    assert_no_secret(error)


@pytest.mark.parametrize(
    "body", [b"", b'data: {"candidates": [\r\n\r\n', b"nonsense", events(b"[1]"), events(b"{}")]
)
async def test_a_200_without_an_answer(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
    assert_no_secret: Callable[..., None],
    body: Any,
) -> None:
    """A 200 without an answer is a failure of the path, whatever its body."""
    scripted.reply = make_http(200, body)
    with pytest.raises(ProviderError) as caught:
        await read(open_provider(scripted.url), deployment)
    assert (caught.value.kind, caught.value.charged) == (FailureKind.NETWORK, True)
    assert_no_secret(caught.value)


def stream_of(*bodies: Any, tail: bytes = b"") -> Fault:
    return Fault.status(200, body=events(*bodies) + tail, headers={"Content-Type": "text/event-stream"})


ANSWER = b'{"candidates": [{"content": {"parts": [{"text": "Hello."}]}, "finishReason": "STOP"}]}'
TAILS = {
    "done": b"data: [DONE]\r\n\r\n",
    "comment": b": keep-alive\r\n\r\n",
    "empty event": b"data: \r\n\r\n",
    "no space": b"data:\r\n\r\n",
    "other fields": b"event: end\r\nid: 7\r\nretry: 100\r\n\r\n",
    "cut": b'data: {"usageMeta',
    "nonsense": b"\xff\xfe",
    "page": b"<html>gone</html>",
    "error": b'data: {"error": {"code": 503, "message": "Overloaded.", "status": "UNAVAILABLE"}}\r\n\r\n',
    "blank lines": b"\r\n\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS.keys())
async def test_what_comes_after_the_end_of_an_answer(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    tail: bytes,
) -> None:
    """Once the answer has ended, whatever follows neither fails nor changes it."""
    emulator.inject(stream_of(ANSWER, tail=tail))
    [reply, *more] = await read(open_provider(emulator.url), deployment)
    assert (reply.text, reply.finish_reason) == ("Hello.", "STOP")
    assert "".join(piece.text for piece in more) == ""
    assert emulator.requests == 1


FRAMED = {
    "comment": b": ping\r\n\r\n" + events(ANSWER),
    "comment in front of the data": b": ping\n" + events(ANSWER),
    "other fields": b"event: message\r\nid: 3\r\nretry: 10\r\n" + events(ANSWER),
    "other fields without a space": b"event:message\nid:3\n" + events(ANSWER, ending=b"\n\n"),
    "data without a space": events(ANSWER).replace(b"data: ", b"data:"),
    "data with spaces": events(ANSWER).replace(b"data: ", b"data:   "),
    "empty events": b"data:\r\n\r\ndata: \r\n\r\n\r\n" + events(ANSWER),
    "after the data": events(ANSWER, ending=b"\r\nevent: message\r\n\r\n"),
    "without an end": b": ping\n" + events(ANSWER, ending=b""),
    "a large comment": b":" + b"-" * 100_000 + b"\n\n" + events(ANSWER),
}


@pytest.mark.parametrize("body", FRAMED.values(), ids=FRAMED.keys())
async def test_framing_that_the_sdk_does_not_know(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    body: bytes,
) -> None:
    """Comments and other fields of server-sent events, which proxies add, do not cost the answer."""
    emulator.inject(Fault.status(200, body=body, headers={"Content-Type": "text/event-stream"}))
    replies = await read(open_provider(emulator.url), deployment)
    assert ("".join(reply.text for reply in replies), replies[-1].finish_reason) == ("Hello.", "STOP")
    assert emulator.requests == 1


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


BODIES = [body[-1_000:] for body in FRAMED.values()]


@pytest.mark.parametrize(
    "body", [*BODIES, b'{"error":\n {"code": 503}}', b"", b"\n", b"a\nb"], ids=range(len(BODIES) + 4)
)
async def test_events_may_come_in_chunks_of_any_size(body: bytes) -> None:
    """However the bytes are cut, the lines are the same, and no framing is among them."""
    whole = b"".join([lines async for lines in event_bytes(_chunks(body))])
    for size in (1, 2, 3, 7):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        assert b"".join([lines async for lines in event_bytes(_chunks(*pieces))]) == whole
    assert not any(line.startswith((b":", b"event", b"id", b"retry")) for line in whole.splitlines())


class Lines:
    """The content of a response, read line by line as older SDKs do."""

    total_bytes = 7

    def __init__(self, body: bytes) -> None:
        self._lines = body.splitlines(keepends=True)

    async def readline(self, *, max_line_length: int) -> bytes:
        return self._lines.pop(0)[:max_line_length] if self._lines else b""


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_line_by_line_is_the_same(body: bytes) -> None:
    """An SDK that reads lines gets those that one gets which reads chunks; the rest is the content's own."""
    content, found = EventContent(Lines(body)), []
    while line := await content.readline(max_line_length=1 << 20):
        found.append(line)
    assert b"".join(found) == b"".join([lines async for lines in event_bytes(_chunks(body))])
    assert content.total_bytes == 7


async def test_a_line_is_passed_on_once_it_is_whole() -> None:
    """What has come is not held back until the next event."""
    lines = event_bytes(_chunks(b"data: 1\n\nda", b"ta: 2\n", b"\n", b"data: 3"))
    assert [line async for line in lines] == [b"data: 1\n\n", b"data: 2\n", b"\n", b"data: 3"]


@pytest.mark.slow
async def test_the_usage_after_the_end_of_an_answer(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """What follows and can be read counts, even if something follows that cannot."""
    usage = b'{"usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3}}'
    emulator.inject(stream_of(ANSWER, usage, tail=TAILS["done"]))
    *_, last = await read(open_provider(emulator.url), deployment)
    assert last.usage is not None
    assert (last.finish_reason, last.usage.input_tokens) == ("STOP", 7)


async def test_a_connection_that_breaks_after_the_end_of_an_answer(
    scripted: ScriptedServer,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    make_http: Callable[..., bytes],
) -> None:
    """An answer that has ended is complete, even if the connection is not closed properly."""
    whole = make_http(200, events(ANSWER, b"{}" * 50))
    scripted.reply, scripted.reset_after_reply = whole[:-40], True
    [reply, *_] = await read(open_provider(scripted.url), deployment)
    assert (reply.text, reply.finish_reason) == ("Hello.", "STOP")


async def test_a_comment_alone_is_no_answer(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A stream of which nothing is an answer is a failure of the path."""
    emulator.inject(stream_of(tail=TAILS["comment"] + TAILS["done"]))
    error = await failure_after(0, open_provider(emulator.url), deployment)
    assert (error.kind, error.scope) == (FailureKind.NETWORK, "path")


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER"])
async def test_a_failed_answer_is_a_reply(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    reason: str,
) -> None:
    """An answer without content because the model failed is a complete reply with its reason."""
    emulator.inject(Fault.no_content(reason))
    [reply] = await read(open_provider(emulator.url), deployment)
    assert (reply.text, reply.failed, reply.finish_reason) == ("", reason, reason)


@pytest.mark.parametrize(
    ("part", "failed"), [(b'{"text": "Hel"}', None), (b'{"text": "hm", "thought": true}', "OTHER")]
)
async def test_the_content_of_any_piece_counts(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    part: bytes,
    failed: str | None,
) -> None:
    """An answer has failed only if none of its pieces has content."""
    emulator.inject(
        stream_of(
            b'{"candidates": [{"content": {"parts": [' + part + b"]}}]}",
            b'{"candidates": [{"finishReason": "OTHER"}]}',
            b'{"usageMetadata": {"promptTokenCount": 7}}',
        )
    )
    *_, last = await read(open_provider(emulator.url), deployment)
    assert (last.failed, last.finish_reason) == (failed, "OTHER")


async def test_an_answer_without_candidates(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A model that thinks until the limit may stream its usage alone: an answer without text."""
    emulator.inject(Fault.no_content(""))
    request = Request(contents="Hello?", max_output_tokens=5)
    replies = await read(open_provider(emulator.url), deployment, request)
    assert "".join(reply.text for reply in replies) == ""
    assert (replies[-1].finish_reason, replies[-1].failed) == ("MAX_TOKENS", None)
    assert replies[-1].usage is not None
    assert replies[-1].usage.input_tokens > 0


async def test_a_usage_alone_is_an_answer_that_failed(
    emulator: GeminiEmulator, open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """Without a limit to explain it, a stream of usage has failed as the same answer in one piece has."""
    emulator.inject(Fault.no_content(""), times=2)
    provider = open_provider(emulator.url)
    *_, last = await read(provider, deployment)
    whole = await provider.generate(deployment, HELLO)
    assert (last.text, last.finish_reason, last.failed) == ("", None, "NO_CANDIDATES")
    assert (last.failed, last.usage, last.model) == (whole.failed, whole.usage, whole.model)
    assert emulator.requests == 2


async def test_a_refused_connection(
    open_provider: Callable[..., GeminiProvider], deployment: Deployment
) -> None:
    """A connection that cannot be made is not charged."""
    error = await failure_after(0, open_provider("http://127.0.0.1:1"), deployment)
    assert (error.kind, error.charged) == (FailureKind.NETWORK, False)


@pytest.mark.parametrize("fault", [Fault.block("OTHER"), Fault.safety()], ids=["prompt", "answer"])
async def test_a_block_is_a_reply(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    fault: Fault,
) -> None:
    """A blocked prompt or answer is a complete reply with its reason."""
    emulator.inject(fault)
    [reply] = await read(open_provider(emulator.url), deployment)
    assert reply.blocked in ("OTHER", "SAFETY")


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_stream_that_is_left_closes_its_connection(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    until_holding: Callable[..., Coroutine[Any, Any, None]],
    pieces: int,
) -> None:
    """Its connection closes at once, without the garbage collector; the next request gets another."""
    emulator.inject(Fault.stream_hang(2), times=1)
    provider = open_provider(emulator.url)
    async with aclosing(provider.stream(deployment, HELLO, lambda: None)) as replies:
        for _ in range(pieces):
            await anext(replies)
        await until_holding(emulator)
    await until_holding(emulator, 0)
    assert len(await read(provider, deployment)) == 4


async def test_a_stream_that_is_cancelled_closes_its_connection(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    deployment: Deployment,
    until_holding: Callable[..., Coroutine[Any, Any, None]],
) -> None:
    """Cancelling while it waits for a piece closes its connection."""
    emulator.inject(Fault.stream_hang(1))
    task = asyncio.create_task(read(open_provider(emulator.url), deployment))
    await until_holding(emulator)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_holding(emulator, 0)


async def test_streams_do_not_disturb_each_other(
    emulator: GeminiEmulator,
    open_provider: Callable[..., GeminiProvider],
    make_deployment: Callable[..., Deployment],
) -> None:
    """Two streams and a request, interleaved in one task, have a connection each."""
    provider = open_provider(emulator.url)
    one = provider.stream(make_deployment(key_id="a"), Request(contents="one"), lambda: None)
    two = provider.stream(make_deployment(key_id="b"), Request(contents="two"), lambda: None)
    first, second = [await anext(one)], [await anext(two)]
    await provider.generate(make_deployment(key_id="c"), HELLO)
    await one.aclose()
    second += [reply async for reply in two]
    assert len(first) == 1
    assert second[-1].finish_reason == "STOP"
