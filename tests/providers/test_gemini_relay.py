"""Forwarding an exchange: what goes out, and what becomes of an answer that fails on its way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from llm_router import (
    Deployment,
    Exchange,
    Head,
    InvalidRequestError,
    Key,
    ProviderError,
    Reply,
    Router,
    Secret,
)
from llm_router.domain.response import Usage
from llm_router.gemini_http.framing import sse_event
from llm_router.gemini_http.wishes import WISH_PREFIX
from llm_router.providers._gemini_relay import (
    comes_in_pieces,
    read_exchange,
    relayed_pieces,
    relayed_whole,
)
from llm_router.testing import FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from llm_router import RelayRequest
    from llm_router.errors import LLMRouterError

SECRET = "AIzaSecretOfAlpha"
DEPLOYMENT = Deployment(Key("alpha", Secret(SECRET)), "flash")
PATH = "/v1beta/models/flash:streamGenerateContent"
BODY = b'{"contents": [{"parts": [{"text": "hi"}]}]}'
FIRST = sse_event(b'{"candidates": [{"content": {"parts": [{"text": "hi"}]}}]}')
LAST = sse_event(b'{"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 3}}')
ERROR = sse_event(
    b'{"error": {"code": 503, "message": "key ' + SECRET.encode() + b'", "status": "UNAVAILABLE"}}'
)


@attrs.define
class FakeAnswer:
    """An answer in given pieces."""

    parts: list[bytes]
    status: int = 200
    headers: Mapping[str, str] = attrs.field(
        factory=lambda: {"Content-Type": "text/event-stream", "Set-Cookie": "a"}
    )
    closed: bool = False

    async def read(self) -> bytes:
        return b"".join(self.parts)

    async def pieces(self) -> AsyncGenerator[bytes]:
        for part in self.parts:
            yield part

    async def aclose(self) -> None:
        self.closed = True


@attrs.define
class FakeSession:
    """A session that keeps what is sent through it."""

    answer: FakeAnswer
    sent: tuple[str, str, Mapping[str, str], bytes] | None = None

    async def exchange(self, verb: str, target: str, headers: Mapping[str, str], body: bytes) -> FakeAnswer:
        self.sent = verb, target, headers, body
        return self.answer


async def _relay(answer: FakeAnswer, exchange: Exchange | None = None) -> tuple[list[Any], FakeSession]:
    session = FakeSession(answer)
    request = read_exchange(exchange or Exchange(path=PATH, query="alt=sse", body=BODY))
    outcome: list[Any]
    if comes_in_pieces(request):
        outcome = [each async for each in relayed_pieces(session, DEPLOYMENT, request)]  # type: ignore[arg-type]
    else:
        outcome = [await relayed_whole(session, DEPLOYMENT, request)]  # type: ignore[arg-type]
    assert answer.closed
    return outcome, session


async def test_a_stream_is_passed_on_in_its_pieces() -> None:
    """The head comes first, with the headers that a client may see; each piece says what is known."""
    (head, *pieces), _ = await _relay(FakeAnswer([FIRST, LAST]))
    assert head.raw == Head(200, (("content-type", "text/event-stream"),))
    assert [each.raw for each in pieces] == [FIRST, LAST]
    assert pieces[-1].usage.input_tokens == 3


async def test_an_error_after_the_first_piece_has_been_told() -> None:
    """The client has read it, so it must not read another; the error is charged, and shows no key."""
    outcome, _ = await _relay(FakeAnswer([FIRST, ERROR]))
    assert [each.raw for each in outcome[1:-1]] == [FIRST, ERROR]
    error = outcome[-1]
    assert isinstance(error, ProviderError)
    assert (error.code, error.told, error.charged) == (503, True, True)
    assert SECRET not in f"{error}{error.body!r}"


async def test_a_whole_answer_that_is_an_error_is_a_failure() -> None:
    """Also under a status of 200: it is not passed on, so that another deployment may answer."""
    whole = Exchange(path=PATH.replace("streamGenerateContent", "generateContent"), body=BODY)
    [error], _ = await _relay(FakeAnswer([ERROR.removeprefix(b"data: ").strip()]), whole)
    assert isinstance(error, ProviderError)
    assert (error.code, error.told) == (503, False)
    assert SECRET not in f"{error}{error.body!r}"


async def test_what_an_interaction_read_is_settled() -> None:
    """What came before, which only the provider knows, counts as well."""
    asked = Exchange(path="/v1beta/interactions", body=b'{"model": "m", "input": "hi"}')
    [reply], _ = await _relay(FakeAnswer([b'{"id": "i", "usage": {"total_input_tokens": 900}}']), asked)
    assert reply.usage.input_tokens == 900


@pytest.mark.parametrize("parts", [[ERROR], [FIRST + ERROR], [ERROR[:9], ERROR[9:], b"\n"]])
async def test_an_error_before_anything_was_passed_on_is_only_a_failure(parts: list[bytes]) -> None:
    """Nothing is yielded before it, so that another deployment may answer."""
    outcome, _ = await _relay(FakeAnswer(parts))
    error = outcome[-1]
    assert isinstance(error, ProviderError)
    assert (error.code, error.told) == (503, False)
    if len(parts) == 1:
        assert len(outcome) == 1


@pytest.mark.parametrize("parts", [[], [FIRST]])
async def test_a_stream_without_an_end_has_broken_off(parts: list[bytes]) -> None:
    """Whether it has begun or not."""
    outcome, _ = await _relay(FakeAnswer(parts))
    assert isinstance(outcome[-1], ProviderError)
    assert not outcome[-1].told


@pytest.mark.parametrize("candidates", ["", '"candidates": [], '])
async def test_a_stream_without_candidates_is_passed_on(candidates: str) -> None:
    """Nothing was to come that broke off: the same answer would be passed on whole."""
    only = sse_event(f'{{{candidates}"usageMetadata": {{"promptTokenCount": 3}}}}'.encode())
    (head, *pieces), _ = await _relay(FakeAnswer([only]))
    assert isinstance(head.raw, Head)
    assert [each.raw for each in pieces] == [only]
    assert pieces[-1].usage.input_tokens == 3


@pytest.mark.parametrize("parts", [[FIRST, LAST, ERROR], [FIRST + LAST + ERROR], [FIRST, LAST + ERROR]])
async def test_an_error_after_the_end_does_not_discard_the_answer(parts: list[bytes]) -> None:
    """It is passed on like all that came, and is no failure of the deployment."""
    (_, *pieces), _ = await _relay(FakeAnswer(parts))
    assert [each.raw for each in pieces] == parts
    assert pieces[-1].finish_reason == "STOP"


@pytest.mark.parametrize("body", [b"{}", b" [ ] \n", b""])
async def test_a_whole_answer_comes_with_its_head(body: bytes) -> None:
    """Once it has come."""
    exchange = Exchange(
        path=PATH.replace("stream", "").replace("GenerateContent", "generateContent"), body=BODY
    )
    outcome, _ = await _relay(FakeAnswer([body]), exchange)
    assert [each.raw.body for each in outcome] == [body]


async def test_exactly_one_credential_goes_upstream() -> None:
    """Headers and parameters of the client's that could be another one stay behind, as do wishes."""
    others = ("authorization", "x-goog-api-key", "cookie", "x-goog-user-project", "openai-organization")
    wishes = [WISH_PREFIX + each for each in ("workload", "fallback", "max-wait", "urgency", "tenant")]
    headers = tuple((name, "mine") for name in (*others, *wishes, "content-type"))
    for query in ("key=mine&access_token=mine", "k%65y=mine", "acc%65ss_tok%65n=mine", "Key=mine"):
        exchange = Exchange(path=PATH, query=f"alt=sse&{query}", headers=headers, body=BODY)
        _, session = await _relay(FakeAnswer([FIRST, LAST]), exchange)
        assert session.sent is not None
        verb, target, sent, body = session.sent
        assert (verb, target, body) == ("POST", f"{PATH}?alt=sse", BODY)
        assert sent == {"content-type": "mine", "accept-encoding": "identity", "x-goog-api-key": SECRET}


@pytest.mark.parametrize(
    ("path", "body", "sent_path", "sent_body"),
    [
        ("/v1beta/models/workload:light:generateContent", BODY, "/v1beta/models/flash:generateContent", BODY),
        (
            "/v1/chat/completions",
            b'{ "a":[{"model":"workload:light"}],\r\n "model" :\t"workload:light" , "messages":["\xc3\xa9"]}',
            "/v1beta/openai/chat/completions",
            b'{ "a":[{"model":"workload:light"}],\r\n "model" :\t"flash" , "messages":["\xc3\xa9"]}',
        ),
        (
            "/v1beta/openai/chat/completions",
            '{"é": 1, "model": "models/flash", "messages": []}'.encode(),
            "/v1beta/openai/chat/completions",
            '{"é": 1, "model": "models/flash", "messages": []}'.encode(),
        ),
        (
            "/v1/chat/completions",
            '{"é": 1, "model": "workload:heavy", "messages": []}'.encode(),
            "/v1beta/openai/chat/completions",
            '{"é": 1, "model": "flash", "messages": []}'.encode(),
        ),
    ],
)
async def test_only_the_name_of_the_model_is_rewritten(
    path: str, body: bytes, sent_path: str, sent_body: bytes
) -> None:
    """Every other byte is as the client sent it."""
    answer = FakeAnswer([b'{"candidates": [{"finishReason": "STOP"}]}'])
    _, session = await _relay(answer, Exchange(path=path, body=body))
    assert session.sent is not None
    assert (session.sent[1], session.sent[3]) == (sent_path, sent_body)


@pytest.mark.parametrize(
    ("fields", "resources", "is_portable"),
    [
        ({}, (), True),
        ({"cachedContent": "cachedContents/c1"}, ("cachedContents/c1",), False),
        (
            {"contents": [{"parts": [{"fileData": {"fileUri": "https://host/v1beta/files/f1"}}]}]},
            ("files/f1",),
            False,
        ),
        ({"contents": [{"parts": [{"text": "look at files/f1 please"}]}]}, (), True),
        ({"contents": [{"parts": [{"text": "a", "thoughtSignature": "c2ln"}]}]}, (), False),
    ],
)
def test_what_belongs_to_a_project_is_read(
    fields: dict[str, Any], resources: tuple[str, ...], *, is_portable: bool
) -> None:
    """Names of caches and files are found where they are references, and not in a text."""
    read = read_exchange(Exchange(path=PATH, body=json.dumps({"contents": ["hi"], **fields}).encode()))
    assert (read.resources, read.is_portable) == (resources, is_portable)


VIDEO = "https://generativelanguage.googleapis.com/v1beta/files/v1:download?alt=media"


@pytest.mark.parametrize(
    ("verb", "path", "body", "further"),
    [
        ("GET", "/v1beta/batches/b", {"response": {"responsesFile": "files/batch-b"}}, ("files/batch-b",)),
        (
            "GET",
            "/v1beta/batches/b",
            {"metadata": {"output": {"responsesFile": "files/batch-b"}}, "response": {"uri": "files/x"}},
            ("files/batch-b",),
        ),
        (
            "GET",
            "/v1beta/models/veo/operations/1",
            {"response": {"generateVideoResponse": {"generatedSamples": [{"video": {"uri": VIDEO}}, {}]}}},
            ("files/v1",),
        ),
        (
            "GET",
            "/v1beta/files",
            {"files": [{"name": "files/a"}], "nextPageToken": "t"},
            ("pages/files.list/t",),
        ),
        ("GET", "/v1beta/files", {"files": [{"name": "files/a"}]}, ()),
        ("GET", "/v1beta/batches/b", {"response": {"inlinedResponses": [{"uri": "files/theirs"}]}}, ()),
        ("GET", "/v1beta/files/a", {"name": "files/a", "uri": "files/a"}, ()),
        ("GET", "/v1beta/batches/b", [], ()),
    ],
)
async def test_what_else_belongs_to_the_project_is_read(
    verb: str, path: str, body: Any, further: tuple[str, ...]
) -> None:
    """Files with results, and the next page of a list; but no name that a model may have written."""
    answer = FakeAnswer([json.dumps(body).encode()])
    [reply], _ = await _relay(answer, Exchange(verb=verb, path=path))
    assert reply.raw.further == further


class RelayingFake(FakeProvider):
    """A provider that relays whatever a function yields."""

    def __init__(self, replies: Callable[[], AsyncGenerator[Reply]]) -> None:
        super().__init__()
        self._make = replies

    def read_exchange(self, exchange: Exchange) -> RelayRequest:
        return read_exchange(exchange)

    def relay(self, *_: Any) -> AsyncGenerator[Reply]:
        return self._make()

    def answer(self, _exchange: Exchange, error: LLMRouterError) -> tuple[Head, bytes]:
        return Head(599), str(error).encode()


@pytest.mark.parametrize("told", [True, False])
async def test_a_client_reads_an_error_once(*, told: bool) -> None:
    """What it was told in the answer is not raised as well; what it was not is, so that it notices."""

    async def replies() -> AsyncGenerator[Reply]:
        yield Reply("", raw=Head(200))
        yield Reply("", raw=b"piece")
        error = ProviderError("no", kind="server")
        error.told = told
        raise error

    exchange = Exchange(path=PATH, body=BODY)
    async with (
        Router([DEPLOYMENT], provider=RelayingFake(replies)) as router,
        router.relay(exchange) as answer,
    ):
        assert await anext(answer) == b"piece"
        with pytest.raises(StopAsyncIteration if told else ProviderError):
            await anext(answer)
        assert not answer.response.success


async def test_after_a_head_with_the_body_nothing_more_is_asked_for() -> None:
    """The body is passed on, the answer is complete, and the provider's generator is closed."""
    ends = []

    async def replies() -> AsyncGenerator[Reply]:
        try:
            yield Reply("", Usage(input_tokens=7), raw=Head(200, body=b"all of it"))
            raise AssertionError("asked for more")
        finally:
            ends.append(True)

    async with Router([DEPLOYMENT], provider=RelayingFake(replies)) as router:
        async with router.relay(Exchange(path=PATH, body=BODY)) as answer:
            assert [piece async for piece in answer] == [b"all of it"]
        assert (answer.response.success, answer.response.usage.input_tokens, ends) == (True, 7, [True])


def test_a_workload_does_not_embed() -> None:
    """Vectors of different models do not compare."""
    with pytest.raises(InvalidRequestError, match="do not compare"):
        read_exchange(Exchange(path="/v1/embeddings", body=b'{"model": "workload:light", "input": "a"}'))
