"""Forwarding an HTTP exchange to the Gemini API with the key of a deployment, byte for byte."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from llm_router.domain.exchange import Head
from llm_router.domain.kinds import FailureKind, FaultScope
from llm_router.domain.request import Request
from llm_router.errors import InvalidRequestError, UnknownPathError
from llm_router.gemini_http.asking import WORKLOAD_PREFIX, Asked, MalformedBodyError, Reading, read_asked
from llm_router.gemini_http.resources import (
    UPLOAD_URL,
    continued_name,
    created_name,
    further_names,
    without_host,
)
from llm_router.gemini_http.routes import KEY_HEADER
from llm_router.gemini_http.scanning import AnswerScanner
from llm_router.gemini_http.targets import Operation, Protocol, Target, parse_target
from llm_router.providers._gemini_failures import from_http, not_an_answer, scrub_bytes
from llm_router.providers._gemini_transport import HttpFailure, refusal_in
from llm_router.providers.base import RelayRequest, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from llm_router.domain.deployment import Deployment
    from llm_router.domain.exchange import Exchange, Headers
    from llm_router.errors import ProviderError
    from llm_router.providers._gemini_session import LoopSession
    from llm_router.providers._gemini_transport import RawAnswer

__all__ = ["comes_in_pieces", "read_exchange", "relayed_pieces", "relayed_whole"]

_OK_STATUSES = range(200, 300)
_SENT_ON = frozenset({"accept", "content-type", "user-agent", "x-goog-api-client", "x-server-timeout"})
_SENT_ON_PREFIXES = ("x-goog-upload-", "openai-beta")
_PASSED_BACK = frozenset({"content-type", "content-disposition", "etag", "server-timing"})
_PASSED_BACK_PREFIXES = ("x-goog-upload-",)
_CREDENTIALS = frozenset({"key", "access_token", "oauth_token", "$alt.key"})

_TELLING = 32
"""Bytes with which a stream must have begun to tell an answer from an error; no answer is shorter."""

_NAMING = 16_384
"""Bytes of a stream in which the name of what it makes must come; it is waited for so long."""

_UNCOUNTED = frozenset({Operation.COUNT_TOKENS})
"""Operations of a model that the provider does not count as its requests."""

_SCANNED = frozenset({Operation.GENERATE, Operation.STREAM, Operation.CHAT, Operation.EMBEDDINGS})
"""Operations whose answers are read on the way: usage and the end."""

_MODELS_OWN = _SCANNED | {Operation.EMBED, Operation.BATCH_EMBED}
"""Operations that a model is for, so that a 404 for one of them says that it is gone."""

_OWN_VERSION = "v1beta"
"""The version that serves every model; the others serve some only."""

_BESIDE = frozenset({Operation.CREATE_CACHE, Operation.GET_MODEL})
"""Operations that no model is asked to do, but that are about one."""

_OWN_QUOTAS = frozenset(
    {Operation.COUNT_TOKENS, Operation.CREATE_BATCH, Operation.CREATE_EMBED_BATCH, Operation.CREATE_CACHE}
)
"""Operations of a model that have quotas of their own."""

_COUNTED = _SCANNED | {Operation.EMBED, Operation.BATCH_EMBED, Operation.CREATE_INTERACTION}
"""Operations whose answers state their usage."""


def read_exchange(exchange: Exchange) -> RelayRequest:
    """Read what an exchange asks for.

    Raises:
        InvalidRequestError: The path is not one of the API, or the body is not what the path needs.
    """
    reading = exchange.reading
    if not isinstance(reading, Reading):
        reading = _read(exchange)
    target, asked = reading.target, reading.asked
    operation = target.operation
    workload = asked.model.removeprefix(WORKLOAD_PREFIX) if asked.model.startswith(WORKLOAD_PREFIX) else None
    embeds = operation in (Operation.EMBED, Operation.BATCH_EMBED, Operation.EMBEDDINGS)
    if workload is not None and embeds:
        raise InvalidRequestError("embeddings of different models do not compare: name the model")
    method = operation.method or ""
    counted = bool(method) and operation not in _UNCOUNTED
    return RelayRequest(
        exchange=exchange,
        method=method,
        model=asked.model if asked.model and workload is None else None,
        workload=workload,
        streams=asked.streams,
        requests=int(counted),
        is_portable=asked.is_portable and not embeds,
        feature=_feature(target),
        resources=asked.resources or continued_name(target.operation, exchange.query),
        request=Request(
            contents=asked.contents, system_instruction=asked.instruction, config=asked.config or None
        ),
        details=reading,
    )


def _read(exchange: Exchange) -> Reading:
    target = parse_target(exchange.verb, exchange.path, openai=exchange.openai)
    if target is None:
        raise UnknownPathError(f"the API has no {exchange.verb} {exchange.path[:200]!r}")
    problem = ""
    asked = Asked()
    try:
        asked = read_asked(target, exchange.body)
    except MalformedBodyError as error:
        problem = str(error)
    if problem:
        raise InvalidRequestError(problem)
    return Reading(target, asked)


def comes_in_pieces(request: RelayRequest) -> bool:
    """Return whether the answer to an exchange is passed on while it comes."""
    target: Target = request.details.target
    return request.streams or target.operation is Operation.DOWNLOAD_FILE


async def relayed_whole(
    session: LoopSession, deployment: Deployment, request: RelayRequest
) -> Reply | ProviderError:
    """Send an exchange, and return its answer with the whole body, or the error in its place.

    Raises:
        PathFailure: No answer came, or it broke off.
    """
    target: Target = request.details.target
    answer = await session.exchange(*_outgoing(deployment, request))
    try:
        if answer.status not in _OK_STATUSES:
            return _failed(await refusal_in(answer), deployment, request)
        body = await answer.read()
    finally:
        await answer.aclose()
    if not _is_json(body):
        return not_an_answer("it is not JSON")
    scanner = AnswerScanner(target.protocol)
    if target.operation in _COUNTED:
        scanner.feed(body)
        if scanner.error is not None:
            return _in_band(scanner, deployment, request)
    headers = _passed_back(answer.headers)
    created = created_name(target.operation, body, headers)
    further = further_names(target.operation, body)
    return _told(scanner, Head(answer.status, headers, created, _deleted(target), body, further))


async def relayed_pieces(
    session: LoopSession, deployment: Deployment, request: RelayRequest
) -> AsyncGenerator[Reply | ProviderError]:
    """Send an exchange, and yield its answer, or last of all the error that it ended with.

    Raises:
        PathFailure: No answer came, or it broke off.
    """
    answer = await session.exchange(*_outgoing(deployment, request))
    try:
        if answer.status not in _OK_STATUSES:
            yield _failed(await refusal_in(answer), deployment, request)
            return
        headers = _passed_back(answer.headers)
        if request.streams:
            async for reply in _stream(answer, headers, deployment, request):
                yield reply
        else:
            yield Reply("", raw=Head(answer.status, headers))
            async for piece in answer.pieces():
                yield Reply("", raw=piece)
    finally:
        await answer.aclose()


async def _stream(
    answer: RawAnswer, headers: Headers, deployment: Deployment, request: RelayRequest
) -> AsyncGenerator[Reply | ProviderError]:
    """Yield a streamed answer; it is held back until its first bytes show that it is none of an error."""
    operation = request.details.target.operation
    scanner = AnswerScanner(request.details.target.protocol)
    held: list[bytes] | None = []
    async for piece in answer.pieces():
        scanner.feed(piece)
        if held is None:
            yield _told(scanner, piece)
            continue
        held.append(piece)
        begun = b"".join(held)
        created = created_name(operation, begun) if operation.creates else ""
        least = _TELLING if created or not operation.creates else _NAMING
        if scanner.error is None and len(begun) >= least:
            yield _told(scanner, Head(answer.status, headers, created))
            yield _told(scanner, begun)
            held = None
    if scanner.error is not None:
        error = _in_band(scanner, deployment, request)
        error.told = held is None
        yield error
    elif held is not None or (not scanner.may_end and operation in _SCANNED):
        yield not_an_answer("it broke off")


def _deleted(target: Target) -> str:
    return target.resource if target.operation.value.endswith(".delete") else ""


def _told(scanner: AnswerScanner, raw: Head | bytes) -> Reply:
    return Reply("", scanner.usage, scanner.finish_reason, scanner.model, raw=raw)


def _in_band(scanner: AnswerScanner, deployment: Deployment, request: RelayRequest) -> ProviderError:
    """Translate an error object that came in place of a piece, under a status of 200."""
    body = scanner.error or b""
    text = body.decode("utf-8", "replace")
    code = int(HTTPStatus.INTERNAL_SERVER_ERROR)
    try:
        found, end = json.JSONDecoder().raw_decode(text)
        body = text[:end].encode()
        stated = found["error"]["code"]
        if isinstance(stated, int) and stated in range(400, 600):
            code = stated
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # cut short: the words in it are read as far as they go
    error = _failed(HttpFailure(code, body, None), deployment, request)
    error.charged = True  # it was accepted: a limiter refuses before any answer begins
    return error


def _failed(failure: HttpFailure, deployment: Deployment, request: RelayRequest) -> ProviderError:
    error = from_http(failure, deployment.key.secret, request.request)
    error.body = scrub_bytes(failure.body, deployment.key.secret)
    target: Target = request.details.target
    if not request.details.asked.model:
        _blame_no_model(error, target.operation)
    elif error.scope is FaultScope.DEPLOYMENT:
        _blame_feature(error, target)
    return error


def _feature(target: Target) -> str:
    """Return what of the API a request uses that a model may lack while it has the rest, or nothing."""
    operation = target.operation
    if operation in _BESIDE or (operation.method and operation not in _MODELS_OWN):
        return operation.value
    return "" if target.version == _OWN_VERSION else f"{target.version} of the API"


def _blame_no_model(error: ProviderError, operation: Operation) -> None:
    """Have an error say nothing of the deployment's model: a resource was asked for, or an agent."""
    if error.kind is FailureKind.MODEL:
        error.kind, error.scope = FailureKind.REQUEST, FaultScope.REQUEST
    elif error.kind is FailureKind.QUOTA and error.scope is FaultScope.DEPLOYMENT:
        error.scope, error.feature = FaultScope.FEATURE, operation.value


def _blame_feature(error: ProviderError, target: Target) -> None:
    """Have an error of something that not every model has say nothing of the rest of the model."""
    feature = _feature(target)
    is_quota = error.kind is FailureKind.QUOTA and target.operation in _OWN_QUOTAS
    if feature and (error.kind is FailureKind.MODEL or is_quota):
        error.scope, error.feature = FaultScope.FEATURE, feature


def _outgoing(deployment: Deployment, request: RelayRequest) -> tuple[str, str, Mapping[str, str], bytes]:
    """Return verb, path with query, headers and body as they go upstream, with the key as the credential."""
    details: Reading = request.details
    exchange, target, asked = request.exchange, details.target, details.asked
    path, body = _path(exchange.path, target), exchange.body
    if request.requests and deployment.model != asked.model and asked.model:
        if target.model:
            path = path.replace(f"/models/{target.model}:", f"/models/{quote(deployment.model, safe='')}:", 1)
        else:
            body = asked.renamed(body, deployment.model)
    elif target.model.startswith(WORKLOAD_PREFIX):  # a count of tokens
        path = path.replace(f"/models/{target.model}:", f"/models/{quote(deployment.model, safe='')}:", 1)
    headers = {
        name: value
        for name, value in exchange.headers
        if name in _SENT_ON or name.startswith(_SENT_ON_PREFIXES)
    }
    headers["accept-encoding"] = "identity"
    secret = deployment.key.secret.reveal().strip()
    if target.protocol is Protocol.OPENAI:
        headers["authorization"] = f"Bearer {secret}"
    else:
        headers[KEY_HEADER] = secret
    query = _query(exchange.query)
    return exchange.verb, f"{path}?{query}" if query else path, headers, body


def _path(path: str, target: Target) -> str:
    """Return the path at the API; a path as OpenAI's own begins ``/v1``, Google's ``/v1beta/openai``."""
    if target.protocol is Protocol.OPENAI and "/openai/" not in path:
        return f"/v1beta/openai{path.removeprefix('/v1')}"
    return path


def _query(query: str) -> str:
    small = query.lower()
    if not any(sign in small for sign in ("key", "token", "%")):  # %: a name may be spelt with it
        return query
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(name, value) for name, value in pairs if name.lower() not in _CREDENTIALS])


def _passed_back(headers: Mapping[str, str]) -> Headers:
    named = [(name.lower(), value) for name, value in headers.items()]
    return tuple(
        [
            (name, without_host(value) if name == UPLOAD_URL else value)
            for name, value in named
            if name in _PASSED_BACK or name.startswith(_PASSED_BACK_PREFIXES)
        ]
    )


def _is_json(body: bytes) -> bool:
    """Return whether a body can be an answer of the API: nothing, or JSON that does not break off."""
    text = body.strip()
    return not text or (text[:1], text[-1:]) in ((b"{", b"}"), (b"[", b"]"))
