"""Sending a body of JSON and reading its answer, with no more of the SDK than its way of doing so."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llm_router.gemini_http.routes import KEY_HEADER
from llm_router.providers._gemini_answers import read_answer
from llm_router.providers._gemini_sse import event_bytes
from llm_router.providers._gemini_transport import OPEN_STREAM, HttpFailure, refusal_in

if TYPE_CHECKING:
    from llm_router.domain.deployment import Deployment
    from llm_router.providers._gemini_session import LoopSession
    from llm_router.providers._gemini_transport import RawAnswer

__all__ = ["ask", "ask_in_pieces"]

_DATA = b"data: "


async def ask(session: LoopSession, deployment: Deployment, version: str, body: bytes) -> Any:
    """Send a body, and return its answer with the attributes of the SDK's response.

    Raises:
        HttpFailure, PathFailure: The call failed.
        Exception: The answer cannot be read.
    """
    target = f"/{version}/models/{deployment.model}:generateContent"
    answer = await _post(session, deployment, target, body)
    try:
        data = await answer.read()
        return read_answer(json.loads(data) if data else {}, dict(answer.headers))
    finally:
        await answer.aclose()


async def ask_in_pieces(
    session: LoopSession, deployment: Deployment, version: str, body: bytes
) -> AsyncGenerator[Any]:
    """Send a body, and yield its answer in pieces, each with the attributes of the SDK's response.

    Raises:
        HttpFailure, PathFailure: The call failed, perhaps in place of a piece.
        Exception: A piece cannot be read.
    """
    target = f"/{version}/models/{deployment.model}:streamGenerateContent?alt=sse"
    answer = await _post(session, deployment, target, body)
    OPEN_STREAM.set(answer.aclose)
    headers = dict(answer.headers)
    try:
        async for event in _events(answer.pieces()):
            value = json.loads(event)
            failure = _failure(value)
            if failure is not None:
                raise failure
            yield read_answer(value, headers)
    finally:
        await answer.aclose()


async def _post(session: LoopSession, deployment: Deployment, target: str, body: bytes) -> RawAnswer:
    headers = {
        "Content-Type": "application/json",
        KEY_HEADER: deployment.key.secret.reveal().strip(),
        **_client_headers(),
    }
    answer = await session.exchange("POST", target, headers, body)
    if answer.status == HTTPStatus.OK:
        return answer
    try:
        refusal = await refusal_in(answer)
    finally:
        await answer.aclose()
    raise refusal


@functools.cache
def _client_headers() -> Mapping[str, str]:
    """Return what the SDK says of itself: a server that tells clients apart sees no difference."""
    from google.genai import __version__  # noqa: PLC0415 - heavy, and already imported

    client = f"google-genai-sdk/{__version__} gl-python/{platform.python_version()}"
    return {
        "user-agent": client,
        "x-goog-api-client": client,
        "Accept": "*/*",
        "Accept-Encoding": "gzip, deflate",
    }


async def _events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the data of each event, and text without a frame once it is JSON: an error may come so."""
    data: list[bytes] = []
    text = b""
    async for block in event_bytes(pieces):
        for line in block.splitlines():
            if line.startswith(_DATA):
                data.append(line[len(_DATA) :])
            elif line.strip():
                text += line
                if _is_json(text):
                    yield text
                    text = b""
            elif data:
                yield b"\n".join(data)
                data = []
    if data or text:
        yield b"\n".join(data) or text


def _is_json(text: bytes) -> bool:
    if not text.rstrip().endswith(b"}"):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _failure(value: Any) -> HttpFailure | None:
    """Return what an error object in place of a piece stands for: the status was 200."""
    if type(value) is not dict or "error" not in value:
        return None
    code = value["error"].get("code") if type(value["error"]) is dict else None
    known = code if isinstance(code, int) else HTTPStatus.INTERNAL_SERVER_ERROR
    return HttpFailure(known, json.dumps(value).encode(), None)
