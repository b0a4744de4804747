"""What ``gateway.py`` calls: the gateway, and a bare relay of the same bytes; each tells its CPU time."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

__all__ = ["serve"]


async def serve(subject: str, emulator: str, report: Callable[[Any], None], stop: Callable[[], Any]) -> None:
    """Serve one subject on a free port until ``stop``, which is called in a thread, returns."""
    import uvicorn  # noqa: PLC0415 - an extra

    from llm_router.gateway.server import listen, server_config  # noqa: PLC0415 - an extra

    with tempfile.TemporaryDirectory() as folder:
        app, token = _bare(emulator), "any"
        if subject != "bare relay":
            app, token = _gateway(emulator, Path(folder) if "watched" in subject else None)
        listener = listen("127.0.0.1", 0)
        settings = {"access_log": False, "log_level": "critical"}
        config = (
            uvicorn.Config(_Telling(app), **settings)
            if subject == "bare relay"
            else server_config(_Telling(app))
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        report({"url": f"http://127.0.0.1:{listener.getsockname()[1]}", "token": token})
        await asyncio.to_thread(stop)
        server.should_exit = True
        await serving


class _Telling:
    """An application that tells at ``/cpu`` how many seconds of CPU time its process has used."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/cpu":
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(time.process_time()).encode()})


def _gateway(emulator: str, folder: Path | None) -> tuple[Any, str]:
    from _subjects import deployments  # noqa: PLC0415 - beside this file

    from llm_router import Router  # noqa: PLC0415 - slow to import
    from llm_router.gateway import Gateway  # noqa: PLC0415 - an extra

    if folder is None:
        return Gateway(Router(deployments(10), base_url=emulator)), "any"
    from llm_router.gateway.activity import Activity  # noqa: PLC0415 - not for all subjects
    from llm_router.gateway.callers import Callers  # noqa: PLC0415
    from llm_router.gateway.metrics import Metrics  # noqa: PLC0415
    from llm_router.gateway.tokens import TokenFile  # noqa: PLC0415

    file, metrics, activity = TokenFile(folder / "tokens.json"), Metrics(), Activity()
    token = file.add("benchmark")
    router = Router(deployments(10), base_url=emulator, observers=(*metrics.observers, activity))
    return Gateway(router, callers=Callers(file), metrics=metrics, activity=activity), token


def _bare(emulator: str) -> Any:
    import aiohttp  # noqa: PLC0415 - an extra
    from starlette.applications import Starlette  # noqa: PLC0415 - an extra
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import Response, StreamingResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    sessions: list[aiohttp.ClientSession] = []

    @asynccontextmanager
    async def live(_app: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sessions.append(session)
            yield

    async def relay(request: Request) -> Response:
        url = f"{emulator}{request.url.path}?{request.url.query}"
        headers = {"x-goog-api-key": "emulated-secret-0", "content-type": "application/json"}
        if not request.url.path.endswith(":streamGenerateContent"):
            async with sessions[0].post(url, data=await request.body(), headers=headers) as answer:
                return Response(await answer.read(), answer.status, media_type=answer.content_type)
        answer = await sessions[0].post(url, data=await request.body(), headers=headers)

        async def pieces() -> Any:
            async with answer:
                async for piece in answer.content.iter_any():
                    yield piece

        return StreamingResponse(pieces(), answer.status, media_type=answer.content_type)

    return Starlette(routes=[Route("/{path:path}", relay, methods=["POST"])], lifespan=live)
