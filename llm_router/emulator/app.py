"""The emulator as an ASGI application: from an HTTP request to the call it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Route as StarletteRoute

from llm_router.emulator.calls import Call, parsed
from llm_router.emulator.exchange import ConnectionGoneError, Exchange
from llm_router.emulator.refusals import RefusalError
from llm_router.gemini_http.api_errors import (
    invalid_authorization,
    invalid_key,
    missing_authorization,
    missing_key,
    multiple_credentials,
    not_found,
    usual_error,
)
from llm_router.gemini_http.credentials import Place, read_credentials
from llm_router.gemini_http.routes import wants_sse
from llm_router.gemini_http.targets import Operation, Protocol, parse_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from llm_router.emulator.connections import Connections
    from llm_router.emulator.keyring import Keyring
    from llm_router.emulator.models import ModelService

__all__ = ["GeminiApp"]

_STATS = "/__emulator__/stats"
_OPENAI_PATHS = "/openai/"
_LIMITED = frozenset(
    {
        Operation.GENERATE,
        Operation.STREAM,
        Operation.EMBED,
        Operation.BATCH_EMBED,
        Operation.CHAT,
        Operation.EMBEDDINGS,
        Operation.CREATE_INTERACTION,
    }
)
"""The operations that are subject to quota."""

_OF_MODELS = frozenset(
    {
        Operation.GENERATE,
        Operation.STREAM,
        Operation.COUNT_TOKENS,
        Operation.EMBED,
        Operation.BATCH_EMBED,
    }
)
"""The operations of a model that the path names, whose body is JSON."""


class GeminiApp:
    """An ASGI application with the paths of the Gemini API, and OpenAI's as Google serves them.

    Args:
        handlers: What serves each operation.
        models: Knows which models exist.
        keyring: The known keys.
        connections: The server's connections.
        stats: Returns what ``/__emulator__/stats`` shows.
    """

    def __init__(
        self,
        handlers: Mapping[Operation, Callable[[Call], Awaitable[None]]],
        models: ModelService,
        keyring: Keyring,
        connections: Connections,
        stats: Callable[[], object],
    ) -> None:
        self.requests = 0
        self._handlers = handlers
        self._models = models
        self._keyring = keyring
        self._stats = stats
        # An endpoint that is an object gets the bare ASGI call: starlette makes no Request and no Response.
        self._starlette = Starlette(
            routes=[StarletteRoute("/{path:path}", _Endpoint(connections, self._serve))]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._starlette(scope, receive, send)

    async def _serve(self, scope: Scope, exchange: Exchange) -> None:
        path = _path(scope)
        raw = await exchange.read()
        target = parse_target(scope["method"], path)
        handler = self._handlers.get(target.operation) if target is not None else None
        if (
            target is None
            or handler is None
            or (target.protocol == Protocol.OPENAI and _OPENAI_PATHS not in path)
        ):
            if (scope["method"], path) != ("GET", _STATS):
                raise RefusalError.of(not_found())
            await exchange.reply_json(200, self._stats())
            return
        operation, query = target.operation, bytes(scope["query_string"]).decode("latin-1")
        self.requests += operation in _LIMITED
        openai = target.protocol == Protocol.OPENAI
        key, project = self._authorize(scope, query, operation, openai=openai)
        if target.model:
            self._models.require(target.model, target.version, operation)
        body = parsed(raw) if operation in _OF_MODELS else {}
        await handler(
            Call(
                exchange=exchange,
                method=operation,
                model=target.model,
                resource=target.resource,
                project=project,
                key=key,
                query=query,
                headers=scope["headers"],
                raw=raw,
                body=body,
                openai=openai,
                streams=operation == Operation.STREAM,
                sse=wants_sse(query),
            )
        )

    def _authorize(self, scope: Scope, query: str, operation: Operation, *, openai: bool) -> tuple[str, str]:
        """Return the key of a request and its project; both are empty for the later parts of an upload."""
        credentials = read_credentials(scope["headers"], query)
        if len(credentials) > 1:
            raise RefusalError.of(multiple_credentials())
        place, key = (credentials[0].place, credentials[0].value) if credentials else (None, "")
        if openai and not key:
            refused = invalid_authorization() if place == Place.BEARER else missing_authorization()
            raise RefusalError.of(refused)
        if openai and place != Place.BEARER:
            raise RefusalError.of(missing_authorization())
        if place == Place.BEARER and not openai:
            raise RefusalError.of(usual_error(401))
        if not key:
            if operation == Operation.UPLOAD and "upload_id=" in query:
                return "", ""
            raise RefusalError.of(missing_key())
        project = self._keyring.project_of(key)
        if project is None:
            raise RefusalError.of(invalid_key())
        return key, project


class _Endpoint:
    """Hands requests to a handler, and turns its refusals into answers."""

    def __init__(
        self, connections: Connections, handler: Callable[[Scope, Exchange], Awaitable[None]]
    ) -> None:
        self._connections = connections
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._connections)
        try:
            await self._handler(scope, exchange)
        except RefusalError as refusal:
            data = refusal.data(openai=_OPENAI_PATHS in _path(scope))
            await exchange.reply(refusal.code, data, headers=refusal.headers)
        except ConnectionGoneError:
            pass


def _path(scope: Scope) -> str:
    """Return the path as it was sent, not decoded."""
    return bytes(scope["raw_path"]).decode("latin-1")
